"""Rendering a list: what is done stays done, what changed is drawn anew, and faults stop nothing else."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch

import studio
from studio.errors import BadConfig, BadFile, DoesNotFit, UnknownName
from studio.families import open_base
from studio.pipelines import ImagePipeline, read_metadata, regenerate, render
from studio.pipelines.rendering import local
from studio.pipelines.rendering.bench import Bench
from studio.pipelines.rendering.claims import Claims, joined
from studio.pipelines.rendering.finished import job_in
from studio.pipelines.rendering.identity import Known
from studio.pipelines.rendering.manifest import Manifest
from tiny_pipelines import BUILDERS, CALL, build

FAST = {"base": "emoji", "device": "cpu"}
JOBS = [{"prompt": "tiger", "steps": 1, "seeds": "0..2"}, {"prompt": "rocket", "steps": 1, "seeds": "0..1"}]


def act(model, name, seed):
    """Gives the raising matrices of a new LoRA values, so that it acts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, tensor in studio.state(model, name).items():
            if key.endswith(".up"):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.05)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    """Three adapters that act, and one that does nothing."""
    folder, pipe = tmp_path_factory.mktemp("adapters"), ImagePipeline.open("emoji")
    for seed, name in enumerate(("ink", "robot", "sun", "still")):
        studio.attach(pipe.pipe, studio.LoRA(rank=2), name=name, seed=seed)
        if name != "still":
            act(pipe.pipe, name, seed)
        studio.save(pipe.pipe, folder / f"{name}.safetensors", name=name)
    return {name: str(folder / f"{name}.safetensors") for name in ("ink", "robot", "sun", "still")}


@pytest.fixture(scope="module")
def one_base():
    """The base opened once: every list of these tests draws with the same object."""
    return ImagePipeline.open("emoji").base


@pytest.fixture(autouse=True)
def quick(monkeypatch, one_base):
    """Opens no base twice."""
    opened = []

    def open_(base, **given):
        assert base == "emoji" or "nowhere" not in str(base), "the hub is not asked"
        studio.detach(one_base.pipe) if studio.adapters(one_base.pipe) else None
        opened.append(base)
        return ImagePipeline(one_base)

    monkeypatch.setattr(ImagePipeline, "open", open_)
    monkeypatch.setattr(local, "WAIT", 0.01)
    return opened


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (Path(folder) / "manifest.jsonl").read_text().splitlines()]


def told(folder, outcome) -> list[int]:
    return [entry["index"] for entry in lines(folder) if entry["outcome"] == outcome]


# -- what is done ----------------------------------------------------------------------------------------------------


def test_a_second_call_draws_nothing_and_opens_nothing(tmp_path, quick):
    first = render(JOBS, tmp_path, **FAST)
    assert (first.drawn, first.found, first.failures) == (5, 0, [])
    before, opened = {file: file.stat().st_mtime_ns for file in first.pictures}, len(quick)
    again = render(JOBS, tmp_path, **FAST)
    assert (again.drawn, again.found, again.pictures) == (0, 5, first.pictures)
    assert {file: file.stat().st_mtime_ns for file in again.pictures} == before and len(quick) == opened
    assert sorted(told(tmp_path, "done")) == list(range(5))
    assert [file.name for file in first.pictures] == [f"{number:05}.png" for number in range(5)]


def test_a_picture_is_the_one_that_generate_makes_and_makes_itself_again(tmp_path, files, one_base):
    jobs = [
        {"prompt": "tiger <robot:0.5>", "seed": 3, "steps": 2},
        {"prompt": "fox", "blend": {"ink": 0.5}, "steps": 2},
    ]
    done = render(jobs, tmp_path, adapters=files, **FAST)
    pipe = ImagePipeline.open("emoji")
    pipe.load(files["ink"], name="ink", strength=0.5)
    (fox,) = pipe.generate("fox", steps=2)
    made = read_metadata(done.pictures[1])
    assert regenerate(done.pictures[1], pipe=pipe).tobytes() == fox.tobytes()
    assert {**made, "job": None} == {**json.loads(fox.info["studio"]), "job": None}
    assert made["job"] == job_in(done.pictures[1])


def test_what_changed_is_drawn_anew_and_only_that(tmp_path, files):
    own = tmp_path / "own.safetensors"
    own.write_bytes(Path(files["ink"]).read_bytes())
    start = tmp_path / "start.png"
    ImagePipeline.open("emoji").generate("fox", steps=1)[0].save(start)
    jobs = [
        {"prompt": "tiger", "steps": 1}, {"prompt": "fox", "steps": 1, "blend": {str(own): 0.5}},
        {"prompt": "ghost", "steps": 2, "image": str(start)},
    ]  # fmt: skip
    out = tmp_path / "out"
    assert render(jobs, out, **FAST).drawn == 3
    jobs[0]["prompt"] = "lion"
    assert (render(jobs, out, **FAST).drawn, read_metadata(out / "00000.png")["prompt"]) == (1, "lion")
    own.write_bytes(Path(files["robot"]).read_bytes())
    assert render(jobs, out, **FAST).drawn == 1
    ImagePipeline.open("emoji").generate("ghost", steps=1)[0].save(start)
    assert render(jobs, out, **FAST).drawn == 1
    assert render(jobs, out, batch_size=2, **FAST).drawn == 3  # rows decide the last bits
    (out / "00001.png").unlink()
    whole = (out / "00002.png").read_bytes()
    (out / "00002.png").write_bytes(whole[:-20])
    assert render(jobs, out, batch_size=2, **FAST).drawn == 2
    assert (out / "00002.png").read_bytes() == whole
    assert told(out, "done").count(0) == 3


def test_neither_order_nor_names_of_files_nor_company_decide_a_picture(tmp_path, files):
    jobs = [
        {"prompt": "tiger", "seeds": "0..2", "blend": {"ink": 0.4, "robot": 0.3, "sun": 0.2}},
        {"prompt": "rocket on a blue background", "seeds": "0..1", "blend": {"sun": 0.5}},
        {"prompt": "fox <robot>", "guidance": 1}, {"prompt": "ghost", "negative": "red"},
    ]  # fmt: skip
    jobs = [{**job, "steps": 2} for job in jobs]
    first = render(jobs, tmp_path / "a", adapters=files, batch_size=2, name="{hash}", **FAST)
    moved = {name: str(tmp_path / f"{number}.safetensors") for number, name in enumerate(sorted(files))}
    for name, file in moved.items():
        Path(file).write_bytes(Path(files[name]).read_bytes())
    others = [{"prompt": "owl <sun:0.1> <ink:0.2>", "steps": 2}, *reversed(jobs)]
    second = render(others, tmp_path / "b", adapters=moved, batch_size=2, name="{hash}", **FAST)
    assert first.drawn == 7 and second.drawn == 8 and not first.failures
    made = {file.name: file for file in second.pictures}
    for file in first.pictures:
        own, other = (dict(read_metadata(one)) for one in (file, made[file.name]))
        for said in (own, other):
            for use in said["adapters"]:
                use.pop("file")
        assert own == other
        assert pixels(file) == pixels(made[file.name])


def pixels(file):
    from PIL import Image

    with Image.open(file) as image:
        return image.tobytes()


def test_a_line_that_is_inserted_or_another_pattern_draws_no_picture_again(tmp_path):
    first = render(JOBS, tmp_path, **FAST)
    before = [file.read_bytes() for file in first.pictures]
    longer = [{"prompt": "owl", "steps": 1}, *reversed(JOBS)]
    second = render(longer, tmp_path, **FAST)
    assert (second.drawn, second.found) == (1, 5)
    assert [file.read_bytes() for file in second.pictures[1:]] == [*before[3:], *before[:3]]
    assert sorted(told(tmp_path, "copied")) == [1, 2, 3, 4, 5] and told(tmp_path, "done").count(0) == 2
    third = render(longer, tmp_path, name="{prompt}/{seed}", **FAST)
    assert (third.drawn, third.found) == (0, 6)
    assert not list((tmp_path / ".render").glob("held.*"))
    assert render(longer, tmp_path, name="{index}.jpg", **FAST).drawn == 6  # of another format


@pytest.mark.parametrize("name", ["{index}.jpg", "{index}.webp", "{base}/{seed}/{prompt}"])
def test_other_formats_and_folders_are_resumed_too(tmp_path, name):
    assert render(JOBS, tmp_path, name=name, **FAST).drawn == 5
    again = render(JOBS, tmp_path, name=name, **FAST)
    assert (again.drawn, again.found) == (0, 5)
    if name.endswith(".jpg"):
        again.pictures[0].write_bytes(again.pictures[0].read_bytes()[:-4])
        assert render(JOBS, tmp_path, name=name, **FAST).drawn == 1


def test_what_was_not_drawn_by_a_job_is_never_written_over(tmp_path, picture):
    picture().save(tmp_path / "00003.png")
    with pytest.raises(BadFile, match=r"00003\.png is there already"):
        render(JOBS, tmp_path, **FAST)
    assert not (tmp_path / "00000.png").exists()
    (tmp_path / "away").symlink_to(tmp_path.parent)
    with pytest.raises(BadFile, match="leads out"):
        render(JOBS, tmp_path, name="away/{index}", **FAST)


@pytest.mark.parametrize("kind", BUILDERS)
def test_every_family_draws_a_list_with_adapters_and_finds_it_done(tmp_path, monkeypatch, kind):
    pipe = build(kind)
    studio.attach(pipe, studio.LoRA(rank=2), name="ink")
    act(pipe, "ink", 0)
    studio.save(pipe, tmp_path / "ink.safetensors", name="ink")
    studio.detach(pipe)
    monkeypatch.setattr(ImagePipeline, "open", lambda base, **given: ImagePipeline(open_base(pipe)))
    side = {name: CALL[kind][name] for name in ("width", "height") if name in CALL[kind]}
    job = {
        "prompt": "a dog",
        "steps": 2,
        **side,
        "axes": {"blend": [{}, "ink"]},
        "adapters": {"ink": "ink.safetensors"},
    }
    monkeypatch.chdir(tmp_path)
    done = render([job], "out", base=kind, device="cpu", batch_size=2)
    assert done.drawn == 2, done.failures
    assert done.pictures[0].read_bytes() != done.pictures[1].read_bytes()
    assert render([job], "out", base=kind, device="cpu", batch_size=2).found == 2


# -- what fails ------------------------------------------------------------------------------------------------------


def failing(monkeypatch, when, error):
    """Lets the denoiser fail when ``when(rows)`` says so."""
    real, rows = Bench.pipe, []

    def pipe(self, base):
        opened = real(self, base)

        def check(module, given, kwargs):
            rows.append(len(given[0] if given else kwargs["sample"]))
            if when(rows):
                raise error

        hook.append(opened.pipe.unet.register_forward_pre_hook(check, with_kwargs=True)) if not hook else None
        return opened

    hook: list = []
    monkeypatch.setattr(Bench, "pipe", pipe)
    return lambda: (hook.pop().remove(), monkeypatch.setattr(Bench, "pipe", real))


ERRORS = [torch.OutOfMemoryError("CUDA out of memory. Tried"), MemoryError(), RuntimeError("can't allocate memory: x")]


@pytest.mark.parametrize("error", ERRORS, ids=["accelerator", "python", "torch"])
def test_a_batch_that_is_too_large_is_halved_and_says_so(tmp_path, monkeypatch, error):
    end = failing(monkeypatch, lambda rows: rows[-1] > 2 * 2, error)  # guidance doubles the rows
    done = render(JOBS, tmp_path, batch_size=8, **FAST)
    end()
    assert done.drawn == 5 and not done.failures
    assert (
        {entry["rows"] for entry in lines(tmp_path)} == {2} == {read_metadata(file)["rows"] for file in done.pictures}
    )
    assert render(JOBS, tmp_path, batch_size=8, **FAST).found == 5


def test_a_job_too_large_for_the_memory_fails_alone(tmp_path, monkeypatch):
    end = failing(monkeypatch, lambda rows: rows[-1] == 1, MemoryError())  # guidance 1 is one row
    done = render([*JOBS, {"prompt": "fox", "guidance": 1, "steps": 1}], tmp_path, retries=2, **FAST)
    end()
    assert done.drawn == 5 and [one.index for one in done.failures] == [5]
    assert "not enough memory" in done.failures[0].error
    assert [entry["attempt"] for entry in lines(tmp_path) if entry["index"] == 5] == [1, 2, 3]


def test_a_failure_in_a_batch_stays_alone_and_what_passes_is_tried_again(tmp_path, monkeypatch):
    end = failing(monkeypatch, lambda rows: len(rows) == 2, ValueError("a cable was loose"))
    done = render(JOBS, tmp_path, batch_size=2, **FAST)
    end()
    assert done.drawn == 5 and not done.failures
    plain = render(JOBS, tmp_path / "plain", batch_size=2, **FAST)
    assert [file.read_bytes() for file in done.pictures] == [file.read_bytes() for file in plain.pictures]


def test_bad_adapters_jobs_and_lines_stop_no_other(tmp_path, files):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(Path(files["ink"]).read_bytes()[:-100])
    jobs = [
        {"prompt": "tiger", "steps": 1}, {"prompt": "tiger", "steps": 1, "blend": {str(broken): 1}},
        {"prompt": "tiger", "steps": 1, "blend": {files["still"]: 1}}, {"prompt": "tiger", "steps": 1, "width": 65},
        {"prompt": "tiger", "steps": 1, "blend": {"gone.safetensors": 1}}, {"prompt": "tiger", "scheduler": "eulr"},
        {"prompt": "tiger", "steps": 1, "blend": {files["ink"]: {"unet": {"nowhere": 1}}}},
        {"prompt": "tiger", "stesp": 1}, {"prompt": "fox", "steps": 1, "blend": {files["ink"]: "0@0,1@1"}},
    ]  # fmt: skip
    done = render(jobs, tmp_path / "out", batch_size=2, **FAST)
    assert [file.name for file in done.pictures] == ["00000.png", "00008.png"]
    assert [one.index for one in done.failures] == [1, 2, 3, 4, 5, 6, 7]
    words = ["broken.safetensors", "changes nothing", "width=65", "no file gone", "'eulr'", "nowhere", "'stesp'"]
    for one, word in zip(done.failures, words, strict=True):
        assert word in one.error, one.error
    assert set(told(tmp_path / "out", "failed")) == {1, 2, 3, 4, 5, 6, 7}
    broken.write_bytes(Path(files["ink"]).read_bytes())
    assert render(jobs, tmp_path / "out", batch_size=2, **FAST).drawn == 1


def test_a_base_that_cannot_be_opened_loses_its_own_jobs_alone(tmp_path, monkeypatch):
    real = ImagePipeline.open

    def open_(base, **given):
        if base == "nowhere":
            raise UnknownName("no base or folder is called 'nowhere'")
        return real(base, **given)

    monkeypatch.setattr(ImagePipeline, "open", open_)
    done = render([*JOBS, {"prompt": "a", "base": "nowhere"}], tmp_path, **FAST)
    assert done.drawn == 5 and "nowhere" in done.failures[0].error
    with pytest.raises(BadConfig, match="no job of the list can be done.*nowhere"):
        render([{"prompt": "a", "base": "nowhere"}], tmp_path, **FAST)


def test_notes_say_what_has_no_effect(tmp_path):
    done = render([{"prompt": "tiger", "negative": "blurry", "guidance": 1, "steps": 1}], tmp_path, **FAST)
    assert "has no effect" in done.notes[0]


def test_an_adapter_that_no_job_needs_is_named(tmp_path, files):
    done = render({"adapters": {"ink": files["ink"]}, "jobs": JOBS[:1]}, tmp_path, **FAST)
    assert done.notes == ["no job of the list needs the adapter 'ink'"] and done.drawn == 3


def test_lists_without_a_job_and_numbers_that_cannot_be_are_refused(tmp_path):
    for given in ({"batch_size": 0}, {"retries": -1}, {"workers": 0}, {"name": "{prompt}"}):
        with pytest.raises(BadConfig):
            render(JOBS, tmp_path, **FAST, **given)
    with pytest.raises(UnknownName, match="'local'"):
        render(JOBS, tmp_path, engine="locl", **FAST)
    with pytest.raises(BadConfig, match="'stesp'"):
        render([{"prompt": "a", "stesp": 3}], tmp_path, **FAST)


# -- disks, signals, and others at the same list ---------------------------------------------------------------------


def test_a_full_disk_stops_in_one_sentence_and_the_rest_is_drawn_later(tmp_path, monkeypatch):
    real, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) > 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BadFile, match=r"no space left.*of 5 pictures are done; the same command goes on"):
        render(JOBS, tmp_path, **FAST)
    monkeypatch.setattr(os, "fsync", real)
    there = [file for file in tmp_path.glob("*.png") if job_in(file)]
    assert 0 < len(there) < 5 and len(list(tmp_path.iterdir())) == len(there) + 2
    done = render(JOBS, tmp_path, **FAST)
    assert (done.drawn, done.found) == (5 - len(there), len(there))


def test_a_manifest_is_whole_lines_whatever_was_torn(tmp_path, monkeypatch):
    manifest = Manifest(tmp_path / "m.jsonl", tmp_path / "m.lock")
    manifest.add(index=0, error="a\nb\ud83d")
    with manifest.file.open("ab") as stream:
        stream.write(b'{"index": 1, "tor')
    manifest.add(index=2)
    assert [entry["index"] for entry in manifest] == [0, 2]
    size, real = manifest.file.stat().st_size, os.write

    def half(descriptor, data):
        if len(data) < 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, bytes(data)[:-5])

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(BadFile, match="no space left"):
        manifest.add(index=3)
    assert manifest.file.stat().st_size == size


def test_ctrl_c_loses_nothing_that_is_done(tmp_path):
    done = []

    def stop(job, error):
        done.append(job)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render(JOBS, tmp_path, on_job=stop, **FAST)
    assert len([file for file in tmp_path.glob("*.png") if job_in(file)]) == 2
    again = render(JOBS, tmp_path, **FAST)
    assert (again.drawn, again.found) == (3, 2)


def test_a_picture_that_its_manifest_does_not_know_is_noted_and_not_drawn(tmp_path):
    render(JOBS, tmp_path, **FAST)
    (tmp_path / "manifest.jsonl").unlink()
    assert render(JOBS, tmp_path, **FAST).found == 5
    assert sorted(told(tmp_path, "found")) == list(range(5))
    assert render(JOBS, tmp_path, **FAST).found == 5 and len(lines(tmp_path)) == 5


def test_what_others_are_at_is_waited_for_and_drawn_if_they_die(tmp_path):
    first = render(JOBS, tmp_path / "plain", **FAST)
    other = Claims(tmp_path / "out" / ".render" / "claims")
    other.folder.mkdir(parents=True)
    claimed = f"00004.png {job_in(first.pictures[4])}"
    assert other.take(claimed) and not Claims(other.folder).take(claimed)
    looks = []

    def leave(seconds):
        looks.append(seconds)
        if len(looks) == 3:
            other.give_all()

    local.time.sleep, real = leave, local.time.sleep
    try:
        done = render(JOBS, tmp_path / "out", **FAST)
    finally:
        local.time.sleep = real
    assert done.drawn == 5 and len(looks) == 3
    assert told(tmp_path / "out", "done")[-1] == 4
    assert not (tmp_path / "out" / ".render" / "claims").exists()


def test_another_list_in_the_same_folder_is_refused_while_it_is_drawn(tmp_path):
    def second(job, error):
        with pytest.raises(DoesNotFit, match="another list"):
            render(JOBS[:1], tmp_path, name="x{index}", **FAST)

    assert render(JOBS[1:], tmp_path, on_job=second, **FAST).drawn == 2
    assert render(JOBS[:1], tmp_path, name="x{index}", **FAST).drawn == 3  # afterwards it may


def test_who_joins_removes_what_the_dead_left(tmp_path):
    (tmp_path / "sessions").mkdir()
    (tmp_path / "sessions" / "dead.lock").touch()
    (tmp_path / "sessions" / "dead.json").write_text('{"list": "other", "pid": 1}')
    (tmp_path / ".00000.png.0123abcd.tmp").touch()
    with joined(tmp_path, tmp_path, "mine"):
        assert len(list((tmp_path / "sessions").iterdir())) == 2
        with joined(tmp_path, tmp_path, "mine"):
            assert len(list((tmp_path / "sessions").iterdir())) == 4
    assert not list((tmp_path / "sessions").iterdir()) and not (tmp_path / ".00000.png.0123abcd.tmp").exists()


def test_hashes_are_read_once_and_again_when_a_file_changes(tmp_path, monkeypatch):
    file = tmp_path / "a.bin"
    file.write_bytes(b"one")
    known = Known(tmp_path / "known.json")
    first = known.content(file)
    known.keep()
    again = Known(tmp_path / "known.json")
    monkeypatch.setattr("studio.pipelines.rendering.identity.open_given", lambda file: pytest.fail("it was read"))
    assert again.content(file) == first
    monkeypatch.undo()
    file.write_bytes(b"three")
    assert again.content(file) != first
    (tmp_path / "known.json").write_text("[" * 100_000)
    assert Known(tmp_path / "known.json").content(tmp_path)
    with pytest.raises(BadFile, match="no file"):
        again.content(tmp_path / "gone")
