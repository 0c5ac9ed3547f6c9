"""What was damaged behind a run's back says so: states, logs, previews, measures, the run's own files."""

from __future__ import annotations

import json
import math
import random
import shutil

import pytest
import torch
from PIL import Image

from studio.adapters import LoRA
from studio.errors import BadFile, DoesNotFit
from studio.trainers import DreamBooth, train
from studio.trainers.image.diffusion import Diffusion
from studio.trainers.loop import checkpoint
from studio.trainers.loop.losses import read_log
from studio.trainers.loop.preview import preview_files, read_measures

STEPS = 4
PROMPT = "a photo of sks robot"


class Killed(Exception):
    """Stands for a process that ends here, without any of our code running after it."""


@pytest.fixture(scope="module")
def arguments(tmp_path_factory, tiny_base):
    photos = tmp_path_factory.mktemp("photos")
    for number, colour in enumerate(("red", "navy", "olive")):
        Image.new("RGB", (64, 64), colour).save(photos / f"{number}.png")
    task = DreamBooth(base=tiny_base, instance_images=photos, instance_prompt=PROMPT, prior="none", preview_steps=2)
    cache = str(tmp_path_factory.mktemp("cache"))
    settings = {"steps": STEPS, "batch_size": 1, "quiet": True, "cache": cache, "checkpoint_every": 1}
    return {"task": task, "adapter": LoRA(rank=2), **settings}


@pytest.fixture(scope="module")
def whole(arguments, tmp_path_factory):
    """A run in one go."""
    return train(output=tmp_path_factory.mktemp("whole") / "run", **arguments)


@pytest.fixture(scope="module")
def stopped(arguments, tmp_path_factory):
    """A run that died in its last step."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    after = Diffusion.after_step

    def die(self, done):
        if done == STEPS:
            raise Killed

    Diffusion.after_step = die
    try:
        with pytest.raises(Killed):
            train(output=folder, **arguments)
    finally:
        Diffusion.after_step = after
    return folder


@pytest.fixture
def run(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "run")


@pytest.fixture
def finished(whole, tmp_path):
    return shutil.copytree(whole.folder, tmp_path / "run")


def states(folder):
    return sorted((folder / "checkpoints").glob("*.state"))


def flipped(data, place, bit):
    return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


def test_every_flipped_bit_of_a_state_is_seen(run):
    """Law 4: one mantissa bit of a tensor was read as it is and gave another adapter."""
    file = states(run)[-1]
    data, chance = file.read_bytes(), random.Random(0)
    for _ in range(150):
        file.write_bytes(flipped(data, chance.randrange(len(data)), chance.randrange(8)))
        with pytest.raises(BadFile):
            checkpoint.read(file)
    for broken in (b"", data[:-1], data + b"x", data[:200], b"\0" * len(data), data[::-1]):
        file.write_bytes(broken)
        with pytest.raises(BadFile, match=file.name):
            checkpoint.read(file)
    assert checkpoint.newest(run).step == STEPS - 2


def test_a_damaged_state_is_passed_over_and_the_bytes_are_those_of_a_run_in_one_go(run, arguments, whole, capsys):
    file = states(run)[-1]
    file.write_bytes(flipped(file.read_bytes(), 5000, 3))
    resumed = train(output=run, **{**arguments, "quiet": False})
    said = capsys.readouterr().err
    assert "step-000003.state is damaged" in said and "of step 2, is taken" in said
    assert resumed.adapter.read_bytes() == whole.adapter.read_bytes()
    assert "step-000003.state is damaged" in resumed.report.read_text(encoding="utf-8")


def test_a_state_of_an_earlier_version_goes_on_with_a_remark(run, arguments, whole, capsys):
    for file in states(run):
        file.write_bytes(file.read_bytes().partition(b"\n")[2])  # torch's bytes alone, as they were written before
    resumed = train(output=run, **{**arguments, "quiet": False})
    assert "wrote no checksum" in capsys.readouterr().err
    assert resumed.adapter.read_bytes() == whole.adapter.read_bytes()


@pytest.mark.parametrize("what", ["renamed", "of another run", "all damaged", "of another adapter"])
def test_states_that_are_not_this_runs_are_refused(run, arguments, what, tmp_path):
    for file in states(run):
        if what == "renamed":
            file.rename(file.with_name(file.name.replace("step-00000", "step-00001")))
        elif what == "of another run":
            checkpoint.write(run, checkpoint.read(file), "another")
        elif what == "all damaged":
            file.write_bytes(file.read_bytes()[:-7])
        else:
            found = checkpoint.read(file)
            odd = {key: tensor[..., :1] for key, tensor in found.tensors.items()}
            checkpoint.write(run, checkpoint.Checkpoint(found.step, odd, {}, {}, found.optimizer))
    message = {"renamed": "it was renamed", "of another run": "is the state of another run",
               "all damaged": "is damaged", "of another adapter": "is of another adapter"}[what]  # fmt: skip
    with pytest.raises(BadFile, match=message):
        train(output=run, **arguments)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda log: b"\xff\xfe" + log, "1 line of log.jsonl are no steps"),
        (lambda log: log.partition(b"\n")[2], "lacks the loss of step 1"),
        (lambda log: b"", "lacks the loss of steps 1, 2, 3"),
        (lambda log: b"{}\n[1]\nnull\n" + b"[" * 100_000 + b"\n" + log, "4 lines of log.jsonl are no steps"),
        (lambda log: log.replace(b'"loss": ', b'"loss": "a" + ', 1), "lacks the loss of step 1"),
    ],
    ids=["not UTF-8", "torn head", "emptied", "foreign", "no number"],
)
def test_a_damaged_log_is_told_and_changes_no_byte(run, arguments, whole, capsys, damage, message):
    log = run / "log.jsonl"
    log.write_bytes(damage(log.read_bytes()))
    resumed = train(output=run, **{**arguments, "quiet": False})
    assert message in capsys.readouterr().err
    assert len(resumed.losses) == STEPS
    known = [mine == theirs for mine, theirs in zip(resumed.losses, whole.losses, strict=True) if not math.isnan(mine)]
    assert known and all(known), "each loss stands at its step"
    assert resumed.adapter.read_bytes() == whole.adapter.read_bytes()
    assert message in resumed.report.read_text(encoding="utf-8")


@pytest.mark.parametrize("log", [b"", b"{", b"\x00\x01", b'{"step": 1, "loss": Infinity}\n'])
def test_a_finished_run_without_its_log_says_so(finished, arguments, whole, capsys, log):
    (finished / "log.jsonl").write_bytes(log)
    again = train(output=finished, **{**arguments, "quiet": False})
    assert "lacks the loss of steps 1, 2, 3, 4" in capsys.readouterr().err
    assert again.already and again.loss == whole.loss and all(map(math.isnan, again.losses))


def test_previews_of_others_are_none_of_ours_and_damaged_ones_are_named(run, arguments):
    previews = run / "previews"
    for name in ("step-2-0.png", "step-000001.png", "step-x-y.txt", "notes.txt", "step-000002-00.jpg"):
        (previews / name).write_bytes(b"junk")
    (previews / "step-000003-00.png").mkdir()
    (previews / "step-000002-00.png").write_bytes(b"\x89PNG\r\n junk")
    assert list(preview_files(run)) == [0, 2]
    page = train(output=run, **arguments).report.read_text(encoding="utf-8")
    assert "the previews of step 2 are damaged" in page


@pytest.mark.parametrize(
    ("text", "kept"),
    [("{", {}), ("[1]", {}), ('{"0": {"loss": 1.5}, "x": {"loss": 1}, "2": 3}', {0: {"loss": 1.5}}),
     ('{"5": {"loss": "much"}}', {}), ("[" * 100_000, {}), ('{"1": {"loss": NaN}}', {})],
)  # fmt: skip
def test_measures_that_cannot_be_read_are_told(tmp_path, text, kept):
    (tmp_path / "previews").mkdir()
    (tmp_path / "previews" / "measures.json").write_text(text)
    said = []
    assert read_measures(tmp_path, said.append) == kept
    assert len(said) == 1 and "measures.json is damaged" in said[0]


@pytest.mark.parametrize("name", ["run.toml", "result.toml"])
@pytest.mark.parametrize("text", ["=", "\ufffe\x00", "x = " + "[" * 50_000], ids=["no TOML", "no text", "nested"])
def test_a_runs_own_files_that_cannot_be_read_are_refused(finished, arguments, name, text):
    (finished / name).write_bytes(text.encode("utf-16" if "\x00" in text else "utf-8"))
    with pytest.raises(BadFile, match=f"{name}.*put it back as the run wrote it"):
        train(output=finished, **arguments)


def test_an_edited_run_is_refused_by_name(finished, arguments):
    text = (finished / "run.toml").read_text(encoding="utf-8")
    (finished / "run.toml").write_text(text.replace("[training]", "[training]\nrank = 3"), encoding="utf-8")
    with pytest.raises(DoesNotFit, match="training.rank was 3 and is not given"):
        train(output=finished, **arguments)
    (finished / "run.toml").unlink()
    with pytest.raises(BadFile, match=r"it lacks run.toml and holds"):
        train(output=finished, **arguments)


def test_a_setting_that_a_later_version_knows_is_taken_as_its_default(run, arguments, whole):
    text = (run / "run.toml").read_text(encoding="utf-8")
    for line in ('init = "kaiming"\n', "rank_stabilized = false\n", "rate_ratio = 16.0\n"):
        assert line in text
        text = text.replace(line, "")
    (run / "run.toml").write_text(text, encoding="utf-8")
    assert train(output=run, **arguments).adapter.read_bytes() == whole.adapter.read_bytes()
    (run / "run.toml").write_text(text.replace("[adapter]", "[adapter]\nuse_bias = true", 1).replace(
        "use_bias = false\n", ""), encoding="utf-8")  # fmt: skip
    with pytest.raises(DoesNotFit, match="adapter.use_bias was True and is False"):
        train(output=run, **arguments)


def test_another_number_of_threads_is_noted_and_told(run, arguments, capsys):
    assert f'threads = [\n    "{torch.get_num_threads()}",\n]' in (run / "run.toml").read_text()
    count = torch.get_num_threads()
    torch.set_num_threads(count + 1)
    try:
        resumed = train(output=run, **{**arguments, "quiet": False})
    finally:
        torch.set_num_threads(count)
    told = f"begun with {count} threads and went on with {count + 1} threads"
    assert told in capsys.readouterr().err and told in resumed.report.read_text(encoding="utf-8")


def test_what_killed_processes_left_goes_under_the_lock(finished, arguments):
    left = [".room.01234567.tmp", "checkpoints/.step-000002.state.89abcdef.tmp", "previews/.a.png.00000000.tmp"]
    for name in left:
        (finished / name).write_bytes(b"x" * 100)
    (finished / "checkpoints" / "step-000003.state").write_bytes(b"of a process that died after the end")
    (finished / ".mine.tmp").touch()
    train(output=finished, **arguments)
    assert not any((finished / name).exists() for name in left) and not states(finished)
    assert (finished / ".mine.tmp").exists()


def test_steps_of_a_log_stand_at_their_places(tmp_path):
    file = tmp_path / "log.jsonl"
    file.write_text("".join(json.dumps({"step": step, "loss": step / 8}) + "\n" for step in (3, 1, 1, 9)))
    found = read_log(file, 4)
    assert [loss if loss == loss else None for loss in found.losses] == [1 / 8, None, 3 / 8, None]
    assert found.problems == ("log.jsonl lacks the loss of steps 2, 4",)
