"""The command line: what it prints, what it makes, and how it refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from studio.cli import COMMANDS, main
from studio.commands.words import ADAPTER, SEEDS, SIZE
from studio.pipelines import read_metadata

PROMPT = "a photo of sks robot"


def studio(*words: object, code: int = 0) -> Result:
    """Runs the command line in this process and checks the exit code."""
    result = CliRunner(env={"COLUMNS": "300"}).invoke(main, [str(word) for word in words], prog_name="studio")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, f"exit code {result.exit_code}\n{result.stdout}\n{result.stderr}"
    return result


def refused(*words: object, code: int = 2) -> str:
    """Runs a request that is refused; returns the one sentence."""
    result = studio(*words, code=code)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and result.stderr.splitlines()[-1] == lines[0], result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""
    note = os.environ.get("STUDIO_MESSAGES")
    if note:  # to quote them
        with Path(note).open("a", encoding="utf-8") as stream:
            stream.write(f"studio {' '.join(map(str, words))}\n  [{code}] {lines[0]}\n")
    return lines[0].removeprefix("error: ")


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures of 64 x 64 pixels."""
    folder = tmp_path_factory.mktemp("shots")
    draw = torch.Generator().manual_seed(0)
    for number in range(4):
        patches = torch.randint(0, 256, (4, 4, 3), dtype=torch.uint8, generator=draw)
        Image.fromarray(patches.numpy()).resize((64, 64), Image.Resampling.NEAREST).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory):
    """Latents and text embeddings of the tests stay out of the user's cache."""
    before = os.environ.get("STUDIO_CACHE")
    os.environ["STUDIO_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["STUDIO_CACHE"]
    else:
        os.environ["STUDIO_CACHE"] = before


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


QUICK = ("--steps", 3, "--set", "preview_prompts=[]")


def dreambooth(base: Path, images: Path, out: Path, *more: object) -> tuple[object, ...]:
    """The command of a short run, of a rank that the tiny base's layers can have."""
    if "--rank" not in more and "--method" not in more:
        more = (*more, "--rank", 2)
    return ("dreambooth", base, images, "--instance-prompt", PROMPT, "-o", out, *QUICK, *more)


@pytest.fixture(scope="module")
def run(tiny_base: Path, shots: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of three steps on the tiny base."""
    folder = tmp_path_factory.mktemp("runs") / "robot"
    result = studio(*dreambooth(tiny_base, shots, folder, "--rank", 2, "--json"))
    told = json.loads(result.stdout)
    assert told["steps"] == 3 and told["trigger"] == "sks robot" and not told["already"]
    assert Path(told["adapter"]) == folder / "adapter.safetensors"
    return folder


# -- help and words --------------------------------------------------------------------------------


def test_help_lists_every_command_and_imports_nothing_heavy():
    code = textwrap.dedent("""
        import sys
        from studio.cli import main
        try:
            main(["--help"])
        except SystemExit as end:
            heavy = {"torch", "numpy", "PIL", "diffusers", "transformers", "rich"} & set(sys.modules)
            print(end.code, sorted(heavy), file=sys.stderr)
    """)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stderr.strip() == "0 []"
    listed = result.stdout.split("Commands:")[1].splitlines()[1 : 1 + len(COMMANDS)]
    assert [line.split()[0] for line in listed] == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_an_example_that_is_this_command(command):
    text = studio(command, "--help").stdout
    assert f"studio {command}" in text.split("Example")[1]


def test_the_module_runs_as_the_script():
    result = subprocess.run([sys.executable, "-m", "studio", "--version"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"studio \d+\.\d+\.\d+\n", result.stdout)


def test_without_a_command_it_shows_the_help():
    assert "Commands:" in studio().stdout


@pytest.mark.parametrize(
    ("word", "seeds"), [("7", (7,)), ("0..3", (0, 1, 2, 3)), ("0,3,5", (0, 3, 5)), ("1..2, 9", (1, 2, 9))]
)
def test_seeds(word, seeds):
    assert SEEDS(word) == seeds


@pytest.mark.parametrize("word", ["", "-1", "3..1", "0...2", "1.5", "0..9999999", "1,1", "a"])
def test_what_is_no_seed_is_refused(word):
    message = refused("generate", "emoji", "tiger", "--seeds", word)
    assert "--seeds" in message


def test_sizes():
    assert SIZE("512x768") == (512, 768) and SIZE("64") == (64, 64)
    assert "such as 512x768" in refused("generate", "emoji", "tiger", "--resolution", "512by768")


@pytest.mark.parametrize(
    ("word", "file", "strength", "name"),
    [
        ("dog.safetensors", "dog.safetensors", 1.0, None),
        ("dog.safetensors:0.8", "dog.safetensors", 0.8, None),
        ("dog.safetensors:-1", "dog.safetensors", -1.0, None),
        ("runs/dog:.5", "runs/dog", 0.5, None),
        ("C:\\a\\dog.safetensors", "C:\\a\\dog.safetensors", 1.0, None),
        ("C:/a/dog.safetensors:0.5", "C:/a/dog.safetensors", 0.5, None),
        ("hound=C:\\dog.safetensors:2", "C:\\dog.safetensors", 2.0, "hound"),
    ],
)
def test_adapters(word, file, strength, name):
    read = ADAPTER(word)
    assert (str(read.file), read.strength, read.name) == (file, strength, name)


@pytest.mark.parametrize(
    ("word", "schedule", "said"),
    [
        ("dog.safetensors:0@0,1@0.4", ((0.0, 0.0), (0.4, 1.0)), "0@0,1@0.4"),
        ("C:\\dog.safetensors:.5@0.5", ((0.5, 0.5),), "0.5@0.5"),
        ("me@home/dog.safetensors", None, "1"),
    ],
)
def test_a_strength_that_changes(word, schedule, said):
    assert (ADAPTER(word).schedule, ADAPTER(word).said) == (schedule, said)


def test_a_file_that_is_there_is_the_whole_word(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("dog:2").touch()
    Path("a=b").touch()
    assert (str(ADAPTER("dog:2").file), ADAPTER("dog:2").strength) == ("dog:2", 1.0)
    assert (str(ADAPTER("a=b:3").file), ADAPTER("a=b:3").name) == ("b", "a")  # "a=b:3" is no file
    assert (str(ADAPTER("a=b").file), ADAPTER("a=b").name) == ("a=b", None)


def test_a_strength_that_is_no_number_is_refused():
    assert "the strength 'strong'" in refused("generate", "emoji", "tiger", "--adapter", "dog:strong")


def test_blocks_that_are_weighed_twice_are_refused():
    word = "dog.safetensors:0.8:lbw=INS:lbw=OUTALL"
    assert "weighed twice, INS and OUTALL" in refused("generate", "emoji", "tiger", "--adapter", word)
    assert "finite" in refused("generate", "emoji", "tiger", "--adapter", "dog.safetensors:nan")


def test_an_unknown_command_and_option_name_the_nearest():
    assert "did you mean 'dreambooth'" in refused("dreamboot")
    assert "--rank" in refused("dreambooth", "emoji", "photos", "--rnk", 3)


# -- training --------------------------------------------------------------------------------------


def test_a_run_has_what_it_promises(run):
    assert {"adapter.safetensors", "report.html", "run.toml", "log.jsonl", "result.toml"} <= set(names(run))
    assert "rank = 2" in (run / "run.toml").read_text()


def test_the_same_command_says_that_it_is_finished(run, tiny_base, shots):
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    result = studio(*dreambooth(tiny_base, shots, run, "--rank", 2))
    assert f"the run in {run} is finished" in result.stderr
    assert "try it: studio generate" in result.stdout
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_two_runs_are_byte_identical(run, tiny_base, shots, tmp_path):
    studio(*dreambooth(tiny_base, shots, tmp_path / "again", "--rank", 2, "--quiet"))
    assert (tmp_path / "again/adapter.safetensors").read_bytes() == (run / "adapter.safetensors").read_bytes()


def test_the_run_toml_of_a_run_gives_the_same_run(run, tiny_base, shots, tmp_path):
    studio(
        "dreambooth", tiny_base, shots, "--config", run / "run.toml", "-o", tmp_path / "again", "--quiet"
    )  # fmt: skip
    assert (tmp_path / "again/adapter.safetensors").read_bytes() == (run / "adapter.safetensors").read_bytes()


def test_settings_come_from_everywhere_and_the_last_word_wins(tiny_base, shots, tmp_path):
    config = tmp_path / "my.toml"
    config.write_text(
        'steps = 9\ninstance_prompt = "a photo of sks dog"\n[adapter]\nmethod = "dora"\nrank = 3\ndropout = 0.1\n'
        "[task]\npreview_prompts = []\n"
    )
    studio(
        "dreambooth", tiny_base, shots, "--config", config, "--steps", 2, "--set", "rank=2", "--set",
        "training.clip=0.5", "--set", "targets=to_q,to_k", "--no-text-encoder", "-o", tmp_path / "run", "-q",
    )  # fmt: skip
    text = (tmp_path / "run/run.toml").read_text()
    for line in ('method = "dora"', "rank = 2", "dropout = 0.1", "steps = 2", "clip = 0.5", '"sks dog"'):
        assert line in text or line.strip('"') in text, text
    with safe_open(tmp_path / "run/adapter.safetensors", "pt") as file:
        keys = list(file.keys())
    assert all("to_q" in key or "to_k" in key for key in keys) and not any("text_encoder" in key for key in keys)


def test_quiet_is_quiet_and_json_is_json(run, tiny_base, shots):
    assert studio(*dreambooth(tiny_base, shots, run, "--rank", 2, "--quiet")).output == ""
    told = json.loads(studio(*dreambooth(tiny_base, shots, run, "--rank", 2, "--json")).stdout)
    assert told["already"] is True


def test_a_style_is_learned_and_blended_with_a_subject(run, tiny_base, shots, tmp_path):
    captioned = tmp_path / "drawings"
    shutil.copytree(shots, captioned)
    for file in captioned.glob("*.png"):
        file.with_suffix(".txt").write_text("a cat")
    out = tmp_path / "ink"
    result = studio("style", tiny_base, captioned, "--trigger", "ink style", "-o", out, "--rank", 2, *QUICK)
    assert f"adapter: {out / 'adapter.safetensors'}" in result.stdout
    result = studio(
        "generate", tiny_base, "ink style, sks robot", "ink style <ink-style:0.5>", "--adapter",
        f"{run / 'adapter.safetensors'}:0.8", "--adapter", f"{out / 'adapter.safetensors'}:0.6", "--seeds", "0..1",
        "--steps", 2, "-o", tmp_path / "out", "--grid", tmp_path / "sheet.png", "--json",
    )  # fmt: skip
    told = json.loads(result.stdout)
    assert [(use["name"], use["strength"]) for use in told["adapters"]] == [("sks-robot", 0.8), ("ink-style", 0.6)]
    assert [(entry["prompt"], entry["seed"]) for entry in told["pictures"]] == [
        ("ink style, sks robot", 0), ("ink style, sks robot", 1), ("ink style <ink-style:0.5>", 0),
        ("ink style <ink-style:0.5>", 1),
    ]  # fmt: skip
    blends = [
        {use["name"]: use["strength"] for use in read_metadata(entry["file"])["adapters"]} for entry in told["pictures"]
    ]
    assert blends[0] == {"sks-robot": 0.8, "ink-style": 0.6} and blends[2] == {"ink-style": 0.5}
    assert "sks-robot answers to 'sks robot', which 'ink style <ink-style:0.5>' does not say" in result.stderr
    assert names(tmp_path / "out") == ["0000.png", "0001.png", "0002.png", "0003.png"]


# -- bad input: one sentence, the right code, nothing half-written ---------------------------------


def nothing_at(folder: Path) -> bool:
    return not folder.exists() or not names(folder)


def test_facts_that_are_missing(tmp_path):
    assert "needs BASE" in refused("dreambooth", "-o", tmp_path / "x")
    assert "needs IMAGES" in refused("dreambooth", "emoji", "-o", tmp_path / "x")
    assert "needs --instance-prompt" in refused("dreambooth", "emoji", "photos", "-o", tmp_path / "x")
    assert "needs --trigger" in refused("style", "emoji", "photos", "-o", tmp_path / "x")
    assert "-o" in refused("dreambooth", "emoji", "photos", "--instance-prompt", PROMPT)


def test_a_base_that_is_not_there(shots, tmp_path):
    assert "did you mean 'emoji'" in refused(*dreambooth(Path("emoij"), shots, tmp_path / "x"))
    assert "model_index.json" in refused(*dreambooth(shots, shots, tmp_path / "x"))
    assert nothing_at(tmp_path / "x")


def test_a_missing_folder(tiny_base, tmp_path):
    message = refused(*dreambooth(tiny_base, tmp_path / "photoz", tmp_path / "x"))
    assert str(tmp_path / "photoz") in message and nothing_at(tmp_path / "x")
    assert str(tmp_path / "photoz") in refused("check", tmp_path / "photoz")


def test_an_empty_folder(tiny_base, tmp_path):
    (tmp_path / "empty").mkdir()
    message = refused(*dreambooth(tiny_base, tmp_path / "empty", tmp_path / "x"))
    assert str(tmp_path / "empty") in message and nothing_at(tmp_path / "x")
    assert "no usable image" in studio("check", tmp_path / "empty", code=2).stdout


def broken(folder: Path, shots: Path) -> None:
    folder.mkdir()
    (folder / "text.png").write_text("not a picture")
    whole = (shots / "0.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])


def test_a_text_file_and_half_a_picture(tiny_base, shots, tmp_path):
    broken(tmp_path / "bad", shots)
    message = refused(*dreambooth(tiny_base, tmp_path / "bad", tmp_path / "x"))
    assert "text.png" in message and "cut.png" in message and nothing_at(tmp_path / "x")
    shutil.copy(shots / "0.png", tmp_path / "bad/good.png")
    result = studio(*dreambooth(tiny_base, tmp_path / "bad", tmp_path / "x"))
    assert re.search(r"skipped: .*text\.png", result.stderr) and re.search(r"skipped: .*cut\.png", result.stderr)
    report = studio("check", tmp_path / "bad").stdout
    assert "text.png" in report and "cut.png" in report
    told = json.loads(studio("check", tmp_path / "bad", "--json").stdout)
    assert told["images"] == 1 and told["ok"]


def test_a_prompt_without_the_trigger(tiny_base, shots, tmp_path):
    word = ("dreambooth", tiny_base, shots, "-o", tmp_path / "x", "--steps", 2)
    same = refused(*word, "--instance-prompt", "a photo of dog", "--class-prompt", "a photo of dog")
    assert "rare word" in same
    preview = refused(*word, "--instance-prompt", PROMPT, "--preview", "a robot in the rain")
    assert "lacks the trigger 'sks robot'" in preview
    assert "empty" in refused(*word, "--instance-prompt", " ")
    assert nothing_at(tmp_path / "x")
    plain = studio(
        "dreambooth", tiny_base, shots, "-o", tmp_path / "y", "--rank", 2, "--instance-prompt", "a photo of dog", *QUICK
    )
    assert "'a photo of dog' has no rare word" in plain.stderr
    assert "has no trigger" in studio("check", shots, "--instance-prompt", "a photo of dog").stdout


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("--method", "lorra"), ("'lorra'", "'lora'")),
        (("--targets", "atention"), ("did you mean the preset 'attention'?",)),
        (("--targets", "to_qq"), ("to_qq", "to_q")),
        (("--rank", 0), ("rank=0", "at least 1")),
        (("--rank", 400), ("400",)),
        (("--method", "ia3", "--rank", 4), ("IA3 has no field 'rank'",)),
        (("--steps", 0), ("steps=0", "at least 1")),
        (("--learning-rate", -1), ("learning_rate",)),
        (("--resolution", "60x64"), ("multiples of", "64 x 64")),
        (("--device", "gpuu"), ("'gpuu'", "did you mean")),
        (("--dtype", "fp8"), ("'fp8' is not one of 'fp32', 'bf16'",)),
        (("--prior", "slef"), ("slef", "self")),
        (("--prior", "images"), ("class_images",)),
        (("--set", "gama=3"), ("'gama'", "gamma")),
        (("--set", "gamma"), ("key=value",)),
        (("--set", "gamma=high"), ("gamma", "a number")),
        (("--rank", 2, "--set", "rank=4"), ("rank is given twice",)),
        (("--config", "nowhere.toml"), ("nowhere.toml",)),
        (("--set", "weighting=min-snrr"), ("min-snrr", "min-snr")),
    ],
)
def test_settings_that_are_wrong(words, parts, tiny_base, shots, tmp_path):
    message = refused(*dreambooth(tiny_base, shots, tmp_path / "x", *words))
    for part in parts:
        assert part in message
    assert nothing_at(tmp_path / "x")


def test_a_config_that_is_wrong(run, tiny_base, shots, tmp_path):
    config = tmp_path / "my.toml"
    config.write_text("[training]\nstepz = 3\n")
    message = refused(*dreambooth(tiny_base, shots, tmp_path / "x", "--config", config))
    assert "my.toml: there is no setting 'stepz'; the nearest are steps" in message
    config.write_text("steps = \n")
    assert "not valid TOML" in refused(*dreambooth(tiny_base, shots, tmp_path / "x", "--config", config))
    kind = refused("style", tiny_base, shots, "--trigger", "ink", "--config", run / "run.toml", "-o", tmp_path / "x")
    assert "dreambooth run" in kind


def test_an_unwritable_output_folder(run, tiny_base, shots, tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file/below/x"):
        message = refused(*dreambooth(tiny_base, shots, place))
        assert str(tmp_path / "file") in message
        assert str(tmp_path / "file") in refused("generate", tiny_base, "tiger", "--steps", 1, "-o", place)
    assert (tmp_path / "file").read_text() == "" and names(tmp_path) == ["file"]


@pytest.fixture
def small_quota():
    """No file of this process may grow beyond 100,000 bytes."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_before_step_one(tiny_base, shots, tmp_path, small_quota):
    message = refused(*dreambooth(tiny_base, shots, tmp_path / "x"))
    assert message.startswith(f"cannot write {tmp_path / 'x'}: ") and "larger than the system allows" in message
    assert nothing_at(tmp_path / "x")


def test_a_sheet_that_does_not_fit_leaves_nothing_behind(tiny_base, tmp_path, small_quota):
    words = ("generate", tiny_base, "tiger", "--seeds", "0..11", "--steps", 1, "-o", tmp_path / "out", "--quiet")
    message = refused(*words, "--grid", tmp_path / "sheet.png")
    assert message.startswith(f"cannot write {tmp_path / 'sheet.png'}: ")
    assert names(tmp_path) == ["out"] and len(names(tmp_path / "out")) == 12


def test_a_folder_with_a_run_of_other_settings(run, tiny_base, shots):
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    message = refused(*dreambooth(tiny_base, shots, run, "--rank", 4, "--seed", 3))
    assert "adapter.rank was 2 and is 4" in message and "training.seed was 0 and is 3" in message
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_a_folder_that_is_no_run(tiny_base, shots, tmp_path):
    (tmp_path / "letters.txt").write_text("mine")
    assert "letters.txt" in refused(*dreambooth(tiny_base, shots, tmp_path))
    assert names(tmp_path) == ["letters.txt"]


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT to one process is a POSIX thing")
def test_a_live_run_is_left_alone_and_an_interrupted_one_goes_on(tiny_base, shots, tmp_path):
    out = tmp_path / "x"
    words = [str(word) for word in dreambooth(tiny_base, shots, out)]
    words[words.index("--steps") + 1] = "4000"
    process = subprocess.Popen(
        [sys.executable, "-m", "studio", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )  # fmt: skip
    try:
        log = out / "log.jsonl"
        until = time.monotonic() + 240
        while not (log.exists() and log.stat().st_size):
            assert process.poll() is None and time.monotonic() < until, process.communicate()[1]
            time.sleep(0.1)
        alive = refused(*words)
        assert f"still going on (process {process.pid}" in alive
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in errors and errors.splitlines()[-1] == "interrupted"
    assert "the same command goes on from there" in errors
    done = int(re.search(r"stopped by SIGINT after step (\d+)", errors)[1])
    assert sorted((out / "checkpoints").glob(f"*{done:06d}*"))
    assert not (out / "adapter.safetensors").exists()


# -- adapter files ---------------------------------------------------------------------------------


def rewritten(file: Path, target: Path, change) -> Path:
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file(change(load_file(file)), target, metadata)
    return target


def draw(base: Path, file: object, out: Path, *more: object) -> tuple[object, ...]:
    return ("generate", base, PROMPT, "--adapter", file, "--steps", 1, "-o", out, *more)


def test_a_missing_and_a_truncated_file(run, tiny_base, tmp_path):
    assert "no.safetensors" in refused(*draw(tiny_base, tmp_path / "no.safetensors", tmp_path / "out"))
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((run / "adapter.safetensors").read_bytes()[:-100])
    for words in (draw(tiny_base, cut, tmp_path / "out"), ("inspect", cut)):
        message = refused(*words)
        assert "cut.safetensors" in message
    cut.write_bytes((run / "adapter.safetensors").read_bytes()[:50])
    refused("inspect", cut)
    assert nothing_at(tmp_path / "out")


def test_one_key_misspelt(run, tiny_base, tmp_path):
    def misspell(tensors):
        key = next(key for key in sorted(tensors) if "to_q" in key)
        return {name.replace("to_q", "to_qq") if name == key else name: tensor for name, tensor in tensors.items()}

    file = rewritten(run / "adapter.safetensors", tmp_path / "misspelt.safetensors", misspell)
    message = refused(*draw(tiny_base, file, tmp_path / "out"), code=3)
    assert "to_qq" in message and "--allow-partial" in message and nothing_at(tmp_path / "out")
    result = studio(*draw(tiny_base, file, tmp_path / "out", "--allow-partial"))
    assert "to_qq" in result.stderr and (tmp_path / "out/0000.png").is_file()


def test_a_file_for_another_family(tiny_base, tmp_path):
    # the two blocks that only SDXL has, with its widths
    block = "unet.down_blocks.2.attentions.0.transformer_blocks.{}.attn2.to_k"
    tensors = {}
    for index in range(4, 9):
        tensors[f"{block.format(index)}.lora_A.weight"] = torch.randn(4, 2048)
        tensors[f"{block.format(index)}.lora_B.weight"] = torch.randn(1280, 4)
    save_file(tensors, tmp_path / "xl.safetensors")
    message = refused(*draw(tiny_base, tmp_path / "xl.safetensors", tmp_path / "out"))
    assert "xl.safetensors" in message and "Stable Diffusion" in message and nothing_at(tmp_path / "out")


def test_an_adapter_that_changes_nothing(run, tiny_base, tmp_path):
    def empty(tensors):
        return {key: tensor * 0 if "lora_B" in key else tensor for key, tensor in tensors.items()}

    file = rewritten(run / "adapter.safetensors", tmp_path / "zero.safetensors", empty)
    message = refused(*draw(tiny_base, file, tmp_path / "out"), code=3)
    assert "changes nothing" in message and nothing_at(tmp_path / "out")
    result = studio(*draw(tiny_base, f"{run / 'adapter.safetensors'}:0", tmp_path / "out"))
    assert "has strength 0 and does not act" in result.stderr


def test_a_tag_that_names_nothing(run, tiny_base, tmp_path):
    words = ("generate", tiny_base, f"{PROMPT} <sks-robbot>", "--adapter", run / "adapter.safetensors")
    assert "did you mean 'sks-robot'" in refused(*words, "-o", tmp_path / "out")
    assert nothing_at(tmp_path / "out")


def test_two_adapters_of_one_name(run, tiny_base, tmp_path):
    other = tmp_path / "other.safetensors"
    shutil.copy(run / "adapter.safetensors", other)
    file = run / "adapter.safetensors"
    result = studio(*draw(tiny_base, file, tmp_path / "out", "--adapter", other, "--json"))
    assert [use["name"] for use in json.loads(result.stdout)["adapters"]] == ["sks-robot", "other"]
    message = refused(*draw(tiny_base, f"dog={file}", tmp_path / "out", "--adapter", f"dog={other}"))
    assert "two adapters are called 'dog'" in message


# -- pictures --------------------------------------------------------------------------------------


def test_the_same_request_gives_the_same_bytes(run, tiny_base, tmp_path):
    files = []
    for out, more in (("one", ()), ("two", ()), ("two", ("--overwrite",))):
        asked = draw(tiny_base, run / "adapter.safetensors", tmp_path / out, "--seeds", "3,5", "--quiet")
        studio(*asked, *more)
        files.append({file.name: file.read_bytes() for file in (tmp_path / out).iterdir()})
    assert files[0] == files[1] == files[2] and sorted(files[0]) == ["0000.png", "0001.png"]


def pixels_of(file: Path) -> bytes:
    with Image.open(file) as image:
        return image.tobytes()


def test_the_adapter_and_its_strength_show_in_the_picture(run, tiny_base, tmp_path):
    pixels = {}
    for strength in (0, 0.5, 1):
        out = tmp_path / str(strength)
        studio(*draw(tiny_base, f"{run / 'adapter.safetensors'}:{strength}", out))
        pixels[strength] = pixels_of(out / "0000.png")
    studio("generate", tiny_base, PROMPT, "--steps", 1, "-o", tmp_path / "base")
    assert pixels[0] == pixels_of(tmp_path / "base/0000.png")
    assert len(set(pixels.values())) == 3


def test_a_strength_that_changes_while_a_picture_is_drawn(run, tiny_base, tmp_path):
    """Off in the first half, on in the second: what the tag of the same form draws, and not what either alone does."""
    file = run / "adapter.safetensors"
    words = ("generate", tiny_base, "--steps", 2)
    drawn = {}
    for schedule in ("0@0.5,1@0.5", "0", "1"):
        studio(*words, PROMPT, "--adapter", f"{file}:{schedule}", "-o", tmp_path / schedule)
        drawn[schedule] = pixels_of(tmp_path / schedule / "0000.png")
    assert len(set(drawn.values())) == 3
    with Image.open(tmp_path / "0@0.5,1@0.5/0000.png") as picture:
        assert "0@0.5,1@0.5" in picture.info["parameters"]
    assert "goes backwards from 0.5 to 0" in refused(*words, PROMPT, "--adapter", f"{file}:1@0.5,0@0")


def test_pictures_go_on_counting_and_nothing_is_written_over(tiny_base, shots, tmp_path):
    shutil.copy(shots / "0.png", tmp_path / "0003.png")
    before = (tmp_path / "0003.png").read_bytes()
    words = ("generate", tiny_base, "tiger", "--steps", 1, "-o", tmp_path)
    studio(*words)
    studio(*words, "--grid", tmp_path / "sheet.png")
    assert names(tmp_path) == ["0003.png", "0004.png", "0005.png", "sheet.png"]
    assert "sheet.png is there already: choose another name, or --overwrite" in refused(
        *words, "--grid", tmp_path / "sheet.png"
    )
    assert "0003.png is there already and was not made here" in refused(*words, "--seeds", "0..3", "--overwrite")
    studio(*words, "--seeds", "0..1", "--grid", tmp_path / "sheet.png", "--overwrite")
    assert names(tmp_path) == ["0000.png", "0001.png", "0003.png", "0004.png", "0005.png", "sheet.png"]
    assert (tmp_path / "0003.png").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--scheduler", "eulr"), "did you mean 'euler'"),
        (("--steps", 0), "steps"),
        (("--guidance", "nan"), "guidance"),
        (("--resolution", "60x64"), "ask for 56 or 64"),
        (("--batch-size", 0), "--batch-size 0: give 1 or more"),
        (("--batch-size", 1_000_000_000), "at most 1,024 pictures"),
        (("--resolution", 100_000), "at most 8,192 pixels"),
        (("--resolution", "9" * 5_000), "more than 19 digits"),
        (("--seeds", "9" * 5_000), "more than 19 digits"),
        (("--seeds", "0..60000,70000..140000"), "makes 130,002 seeds; give at most 100,000"),
        (("--steps", 10**9), "at most 100,000 steps"),
        (("--device", "tpu"), "'tpu'"),
        (("--dtype", "int4"), "'int4'"),
        (("--negative", "<dog:1>"), "'dog', which is not loaded"),
    ],
)
def test_requests_that_are_wrong(words, part, tiny_base, tmp_path):
    assert part in refused("generate", tiny_base, "tiger", "--steps", 1, *words, "-o", tmp_path / "out")
    assert nothing_at(tmp_path / "out")


# -- looking ---------------------------------------------------------------------------------------


def test_inspect(run):
    text = studio("inspect", run / "adapter.safetensors").stdout
    for part in ("lora", "sks robot", "rank", "2", "unet", "tiny"):
        assert part in text
    told = json.loads(studio("inspect", run / "adapter.safetensors", "--json").stdout)
    assert told["method"] == "lora" and told["rank"] == 2 and told["facts"]["trigger"] == "sks robot"
    assert told["facts"]["steps"] == "3" and not told["unread"]


def test_check_finds_what_would_spoil_a_training(shots):
    result = studio("check", shots, "--instance-prompt", PROMPT, "--resolution", "512")
    assert "4 images" in result.stdout and "smaller than 512x512" in result.stdout


def test_doctor():
    result = CliRunner(env={"COLUMNS": "300"}).invoke(main, ["doctor", "--fast", "--json"])
    told = json.loads(result.stdout)
    assert result.exit_code == (1 if told["problems"] else 0)
    assert {"system", "packages", "devices", "extras", "disk"} <= {row["group"] for row in told["rows"]}
    assert "python" in CliRunner().invoke(main, ["doctor", "--fast"]).stdout


def test_what_nobody_expected_shows_its_traceback(monkeypatch):
    import studio.doctor

    monkeypatch.setattr(studio.doctor, "diagnose", lambda *words, **more: 1 / 0)
    result = CliRunner(env={"COLUMNS": "300"}).invoke(main, ["doctor"])
    assert isinstance(result.exception, ZeroDivisionError) and result.exit_code == 1


def test_a_disk_that_fills_up_on_the_way_is_one_sentence(monkeypatch):
    import errno

    import studio.doctor

    def full(*words, **more):
        raise OSError(errno.ENOSPC, "No space left on device", "runs/dog/log.jsonl")

    monkeypatch.setattr(studio.doctor, "diagnose", full)
    assert "runs/dog/log.jsonl: no space left on the device" in refused("doctor")


# -- the demo --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_demo_teaches_a_robot(tmp_path):
    told = json.loads(studio("demo", "-o", tmp_path / "demo", "--json").stdout)
    assert told["fidelity"]["subject"] >= 0.6 and told["fidelity"]["prompt"] >= 0.8
    assert Path(told["picture"]).is_file() and Path(told["report"]).is_file()


def test_the_demo_runs_and_runs_again(tmp_path, monkeypatch):
    monkeypatch.setattr("studio.commands.demo.COLOURS", ("red", "purple"))
    monkeypatch.setattr("studio.commands.demo.SEEDS", (0,))
    first = studio("demo", "--steps", 2, "-o", tmp_path / "demo")
    assert "before-after.png" in first.stdout and "report.html" in first.stdout and "nearest" in first.stdout
    picture = (tmp_path / "demo/before-after.png").read_bytes()
    again = json.loads(studio("demo", "--steps", 2, "-o", tmp_path / "demo", "--json").stdout)
    assert again["already"] and (tmp_path / "demo/before-after.png").read_bytes() == picture
    assert set(again["fidelity"]) == {"subject", "nearest", "prompt"}
