"""Lists of jobs: their forms, grids, names of pictures, and what is refused by its line and field."""

from __future__ import annotations

import json

import pytest

from studio.adapters import Strength
from studio.errors import BadConfig, BadFile, UnknownName
from studio.pipelines.rendering.job import FIELDS, Job
from studio.pipelines.rendering.listing import read_jobs
from studio.pipelines.rendering.names import kind_of, named

YAML = """
base: emoji
adapters:
  robot: robot.safetensors
defaults:
  steps: 8
  negative: blurry
axes:
  guidance: [1, 3]
jobs:
- prompt: [a tiger, a rocket]
  seeds: 0..1
- prompt: a fox
  steps: 2
  guidance: 4.5
  blend: {robot: 0.8}
"""
CSV = """prompt,seeds,steps,blend,strength:ink,adapters
"a tiger, sitting",0..1,8,robot.safetensors:0.5,,

a rocket,3,,ink,0.7,ink=ink.safetensors
"""
JSONL = """{"prompt": "a tiger", "seeds": [0, 5], "steps": 8}

{"prompt": "a rocket", "blend": {"robot.safetensors": {"value": 0.5, "components": {"unet": 0.8}}}}
"""
WRITTEN = {"yaml": YAML, "csv": CSV, "jsonl": JSONL}


def written(folder, form, text=None):
    file = folder / f"jobs.{form}"
    file.write_text(WRITTEN[form] if text is None else text, encoding="utf-8")
    return file


def jobs(entry, **given):
    found = read_jobs([entry], base="emoji", **given)
    assert not found.bad, found.bad
    return found.jobs


def refusal(entry, **given):
    found = read_jobs([{"prompt": "a"}, entry], base="emoji", **given)
    assert len(found.jobs) == 1 and len(found.bad) == 1
    return found.bad[0].error


def test_a_yaml_list_has_defaults_adapters_and_axes_for_all_of_its_jobs(tmp_path):
    found = read_jobs(written(tmp_path, "yaml"))
    assert [(job.prompt, job.guidance, job.seed, job.steps, job.negative) for job in found.jobs] == [
        *((prompt, guidance, seed, 8, "blurry") for prompt in ("a tiger", "a rocket") for guidance in (1, 3)
          for seed in (0, 1)),
        ("a fox", 4.5, 0, 2, "blurry"),
    ]  # fmt: skip
    last = found.jobs[-1]
    assert (last.base, last.blend, last.adapters) == ("emoji", {"robot": 0.8}, {"robot": "robot.safetensors"})
    assert [job.index for job in found.jobs] == list(range(9))
    assert (found.jobs[0].where, last.where) == ("jobs.yaml line 11", "jobs.yaml line 13")


def test_a_table_of_cells_is_read_with_its_quotes_and_empty_cells(tmp_path):
    first, second, third = read_jobs(written(tmp_path, "csv"), base="emoji").jobs
    assert (first.prompt, first.seed, second.seed, first.steps) == ("a tiger, sitting", 0, 1, 8)
    assert first.blend == {"robot": 0.5} and first.adapters == {"robot": "robot.safetensors"}
    assert (third.steps, third.blend, third.adapters) == (None, {"ink": 0.7}, {"ink": "ink.safetensors"})
    assert third.where == "jobs.csv line 4"


def test_lines_of_json_may_hold_whole_strengths(tmp_path):
    *tigers, rocket = read_jobs(written(tmp_path, "jsonl"), base="emoji").jobs
    assert [job.seed for job in tigers] == [0, 5]
    assert rocket.blend == {"robot": Strength(0.5, unet=0.8)} and rocket.where == "jobs.jsonl line 3"


def test_tables_of_python_are_a_list_too():
    whole = read_jobs({"base": "emoji", "defaults": {"steps": 3}, "jobs": [{"prompt": "a"}]})
    (plain,) = read_jobs([{"prompt": "a", "steps": 3}], base="emoji").jobs
    assert whole.jobs == [plain]


def test_paths_beside_the_list_are_meant_and_those_of_the_caller_are_not_looked_for_there(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
        (folder / "ink.safetensors").touch()
    (there / "start.png").touch()
    (there / "emoji").mkdir()  # which does not hide the embedded base
    monkeypatch.chdir(here)
    file = written(there, "jsonl", '{"prompt": "a <robot>", "blend": {"ink.safetensors": 1}, "image": "start.png"}')
    (job,) = read_jobs(file, base="emoji", adapters={"robot": "ink.safetensors"}).jobs
    assert job.adapters == {"ink": str(there / "ink.safetensors"), "robot": str(here / "ink.safetensors")}
    assert (job.image, job.base) == (str(there / "start.png"), "emoji")


def test_axes_run_in_their_order_the_last_one_fastest():
    grid = {"steps": [2, 4], "strength:robot": [0, 0.5], "base": ["a", "b"]}
    found = jobs({"prompt": "a <robot>", "axes": grid, "seeds": 7, "adapters": {"robot": "r.safetensors"}})
    made = [(job.steps, job.blend["robot"], job.base, job.seed) for job in found]
    assert made == [(steps, strength, base, 7) for steps in (2, 4) for strength in (0, 0.5) for base in ("a", "b")]


def test_a_blend_is_an_axis_and_so_are_strengths_of_all_in_it():
    files = {"robot": "r.safetensors", "ink": "i.safetensors"}
    found = jobs({"prompt": "a", "axes": {"blend": ["robot", {"ink": 1}], "strength:*": [0.5, 1]}}, adapters=files)
    assert [job.blend for job in found] == [{"robot": 0.5}, {"robot": 1.0}, {"ink": 0.5}, {"ink": 1.0}]


def test_schedules_and_components_are_written_as_in_tags():
    (job,) = jobs({"prompt": "a", "blend": {"r.safetensors": "0@0,1@0.4", "i.safetensors": "0.5"}})
    assert job.blend == {"r": "0@0,1@0.4", "i": 0.5}


def test_a_whole_strength_has_a_mask_beside_the_list_and_a_schedule(tmp_path, picture):
    picture(0).save(tmp_path / "left.png")
    strength = {"value": 0.5, "mask": "left.png", "schedule": [[0, 0], [0.4, 1]], "components": {"unet": 0.8}}
    text = json.dumps({"prompt": "a", "blend": {"r.safetensors": strength, "i.safetensors": {"unet": {"down": 0.5}}}})
    (job,) = read_jobs(written(tmp_path, "jsonl", text), base="emoji").jobs
    mask = str(tmp_path / "left.png")
    assert job.blend["r"] == Strength(0.5, mask=mask, schedule=[(0, 0), (0.4, 1)], unet=0.8)
    assert job.blend["i"] == {"unet": {"down": 0.5}}  # diffusers' table, which means something on a base alone


def test_choices_are_made_by_the_seed_and_say_which_adapters_are_needed(tmp_path):
    folder = tmp_path / "words"
    folder.mkdir()
    (folder / "style.txt").write_text("drawn <ink>\n")
    files = {"robot": "r.safetensors", "ink": "i.safetensors"}
    entry = {"prompt": "{a|b} __style__", "seeds": "0..7", "wildcards": str(folder)}
    found = jobs(entry, adapters=files)
    assert {job.resolved[0] for job in found} == {"a drawn <ink>", "b drawn <ink>"}
    assert all(list(job.adapters) == ["ink"] and job.prompt == "{a|b} __style__" for job in found)
    (folder / "style.txt").write_text("drawn <robot>\n")
    assert list(jobs(entry, adapters=files)[0].adapters) == ["robot"]


def test_only_adapters_that_a_job_names_are_loaded_for_it():
    files = {"robot": "r.safetensors", "ink": "i.safetensors", "sun": "s.safetensors"}
    for prompt, blend, wanted in (
        ("a", None, []), ("a <ink>", None, ["ink"]), ("a <lora:sun:0.5>", {"robot": 1}, ["robot", "sun"]),
    ):  # fmt: skip
        assert list(jobs({"prompt": prompt, "blend": blend}, adapters=files)[0].adapters) == wanted


def test_a_tag_that_nobody_declares_is_refused_before_anything_is_drawn():
    said = refusal({"prompt": "a <rboot:0.5>", "adapters": {"robot": "r.safetensors"}})
    assert said.startswith("job 1: ") and "did you mean 'robot'" in said
    assert jobs({"prompt": "i <3 you <robot:transformer=0.5>"}, adapters={"robot": "r.safetensors"})[0].adapters


def test_what_acts_by_default_acts_where_a_job_says_nothing():
    given = {"adapters": {"robot": "r.safetensors"}, "blend": {"robot": 0.8}}
    assert jobs({"prompt": "a"}, **given)[0].blend == {"robot": 0.8}
    assert jobs({"prompt": "a", "blend": {}}, **given)[0].blend == {}


WRONG = {
    "prompt": ([5, True], "is no text"), "negative": (["\ud83d"], "surrogate"),
    "seed": ([-1, 2**63, 1.5, "x"], "whole number"),
    "steps": ([0, "ten", True], "whole number"), "guidance": (["nan", float("inf"), "1_0", []], "finite number"),
    "blend": ([5, {3: 1}, {"r.safetensors": "x"}, {"r.safetensors": float("nan")}, {"robot": 1}, "a a"], "blend"),
    "image": ([5, ""], "no path"), "width": ([0, "64x64"], "whole number"), "seeds": (["3..1", "a", "0..9999999"], ""),
    "axes": ([[1], {"steps": 4}, {"steps": []}, {"prompt": ["a"]}], ""), "stesp": ([3], "did you mean 'steps'"),
    "adapters": ([[], {"a b": "x"}, {"a": 5}], "adapter"), "strength:*": ([0.5], "empty"),
    "strength:robot": ([0.5], ""), "wildcards": (["nowhere", "a" * 5000], ""), "upscale": (["much"], "finite number"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "value", "words"), [
    (name, value, words) for name, (values, words) in WRONG.items() for value in values
])  # fmt: skip
def test_a_wrong_field_is_named_and_spoils_no_other(name, value, words):
    said = refusal({"prompt": "b", name: value})
    assert said.startswith("job 1: ") and words in said


def test_what_is_missing_is_named():
    assert "'prompt' is missing" in refusal({"steps": 3})
    assert "'base' is missing" in read_jobs([{"prompt": "a"}]).bad[0].error
    assert "no job" in refusal("a tiger")


def test_seed_and_seeds_or_a_value_and_an_axis_are_one_too_many():
    for entry in ({"seed": 1, "seeds": 2}, {"steps": 3, "axes": {"steps": [1]}}, {"seed": 1, "axes": {"seeds": [2]}}):
        assert "which one is meant" in refusal({"prompt": "a", **entry})


def test_of_a_grid_only_the_wrong_places_are_lost():
    found = read_jobs([{"prompt": "a", "axes": {"steps": [2, 0, 4]}}], base="emoji")
    assert [job.index for job in found.jobs] == [0, 2] and [bad.index for bad in found.bad] == [1]


@pytest.mark.parametrize("form", ["csv", "jsonl", "yaml"])
def test_one_bad_line_among_a_thousand_is_named(tmp_path, form):
    cells = [(f"a tiger {number}", str(number if number != 412 else "x")) for number in range(1000)]
    text = {
        "csv": "prompt,seed\n" + "".join(f"{prompt},{seed}\n" for prompt, seed in cells),
        "jsonl": "".join(json.dumps({"prompt": prompt, "seed": seed}) + "\n" for prompt, seed in cells),
        "yaml": "jobs:\n" + "".join(f"- {{prompt: {prompt}, seed: {seed}}}\n" for prompt, seed in cells),
    }[form]
    found = read_jobs(written(tmp_path, form, text), base="emoji")
    assert len(found.jobs) == 999 and [bad.index for bad in found.bad] == [412]
    line = 413 if form == "jsonl" else 414
    assert found.bad[0].error == f"jobs.{form} line {line}: seed='x' is not a whole number from 0 on"


@pytest.mark.parametrize(("form", "text", "words"), [
    ("yaml", "jobs: [", "line 1"), ("yaml", "base: emoji", "holds no jobs"), ("yaml", "jobs: []", "holds no jobs"),
    ("yaml", "jobs:\n- {prompt: a, prompt: b}", "twice"), ("yaml", "jobs: !!python/object:os.system []", "no YAML"),
    ("yaml", "jbos: [1]\njobs: [1]", "did you mean 'jobs'"), ("yaml", "", "holds no jobs"),
    ("yaml", "a: &a [1,1,1,1]\njobs: &b [*a,*a]\naxes: 5", "means nothing"), ("csv", "", "holds no jobs"),
    ("csv", "prompt,stesp\na,3", "did you mean 'steps'"), ("csv", "prompt,prompt\na,b", "twice"), ("txt", "a", ".yaml"),
    ("jsonl", "", "holds no jobs"),
])  # fmt: skip
def test_a_list_that_cannot_be_read_as_a_whole_is_refused(tmp_path, form, text, words):
    with pytest.raises((BadFile, BadConfig), match=words):
        read_jobs(written(tmp_path, form, text), base="emoji")


def test_other_lines_that_cannot_be_read(tmp_path):
    found = read_jobs(written(tmp_path, "csv", 'prompt,seed\na,1\nb\n"c"x,3\nd,4\n'), base="emoji")
    assert [job.prompt for job in found.jobs] == ["a", "d"]
    assert [bad.where for bad in found.bad] == ["jobs.csv line 3", "jobs.csv line 4"]
    found = read_jobs(written(tmp_path, "jsonl", '{"prompt": "a"}\n{\n[1]\n{"a": 1, "a": 2}\n'), base="emoji")
    assert [bad.where for bad in found.bad] == [f"jobs.jsonl line {number}" for number in (2, 3, 4)]


def test_a_missing_list_or_something_else_is_refused(tmp_path):
    for jobs_, words in ((tmp_path / "none.yaml", "no list of jobs"), (b"x", "are a file"), (5, "are a file")):
        with pytest.raises((BadFile, BadConfig), match=words):
            read_jobs(jobs_)
    (tmp_path / "latin.csv").write_bytes("prompt\ncaf\xe9".encode("latin-1"))
    with pytest.raises(BadFile, match="UTF-8"):
        read_jobs(tmp_path / "latin.csv")


def test_a_list_has_an_end(monkeypatch, tmp_path):
    monkeypatch.setenv("STUDIO_LIMITS", "jobs=5")
    with pytest.raises(BadConfig, match='STUDIO_LIMITS="jobs='):
        read_jobs([{"prompt": "a", "seeds": "0..2"}] * 2, base="emoji")
    assert "make 6 pictures" in refusal({"prompt": "a", "seeds": "0..5"})
    bomb = "a: &a [1,1,1,1,1]\nb: &b [*a,*a,*a,*a]\njobs: [*b,*b,*b,*b,*b]"
    with pytest.raises(BadFile, match="aliases"):
        read_jobs(written(tmp_path, "yaml", bomb), base="emoji")


# -- names -----------------------------------------------------------------------------------------------------------


def job(index=0, **fields):
    return Job(index=index, where=f"job {index}", **{"prompt": "A Tiger, on/../blue!", "base": "emoji", **fields})


@pytest.mark.parametrize(("pattern", "file"), [
    ("{index:05}", "00003.png"), ("{prompt:7}_{seed}", "A-Tiger_5.png"), ("{hash:8}.jpg", "0a1b2c3d.jpg"),
    ("{base}/{steps}/{guidance:.1f}", "emoji/own/3.0.png"), ("{blend}.webp", "ink-0.5.webp"),
    ("con{seed}/nul", "con5/_nul.png"),
    ("a//./{index}.PNG", "a/3.png"), ("{prompt}", "A-Tiger-on-..-blue.png"), ("{{x}}{index}", "{x}3.png"),
])  # fmt: skip
def test_a_pattern_is_filled_with_what_every_system_takes(pattern, file):
    one = job(3, seed=5, guidance=3.0, blend={"ink": 0.5})
    found = named(pattern, [one], ["0a1b2c3d4e5f"])
    assert [found[0].lower()] == [file.lower()]


def test_long_names_are_cut_and_hidden_ones_are_none():
    (long,) = named("{prompt}" * 4, [job(prompt="ü" * 500)], ["0"])
    assert len(long.encode()) <= 210
    assert named("{prompt}", [job(prompt="...")], ["0"]) == ["picture.png"]


@pytest.mark.parametrize("pattern", [
    "../{index}", "/tmp/{index}", "a/../../{index}", "C:/{index}", "a\\{index}", "", 5, "{index", "{index!r}",
    "{index:{seed}}", "{index:x y}", "{prompt:>5}",
])  # fmt: skip
def test_a_pattern_that_leads_out_or_cannot_be_read_is_refused(pattern):
    with pytest.raises(BadConfig):
        named(pattern, [job()], ["0"])


@pytest.mark.parametrize("pattern", ["{indx}", "{prompt.__class__}", "{0}", "{}"])
def test_other_fields_are_refused_with_the_nearest(pattern):
    with pytest.raises(UnknownName, match="did you mean"):
        named(pattern, [job()], ["0"])


def test_two_jobs_of_one_name_are_refused_and_so_are_names_that_differ_in_case_alone():
    for first, second in (("a", "a"), ("Dog", "dog")):
        with pytest.raises(BadConfig, match=r"job 0, job 1.*index"):
            named("{prompt}", [job(0, prompt=first), job(1, prompt=second)], ["0", "1"])


def test_the_format_is_how_the_pattern_ends():
    assert [kind_of(name) for name in ("{index}", "{index}.JPG", "x.webp")] == ["PNG", "JPEG", "WEBP"]


def test_every_field_that_generate_has_is_one_of_a_job():
    from studio.pipelines.asking import Wanted

    assert set(Wanted.__dataclass_fields__) - {"resolved"} <= set(FIELDS)
