"""Several processes train what one does: real ones, by torch's launcher and gloo, on this machine."""

from __future__ import annotations

import os
import signal

import pytest

from studio.config import read_toml
from studio.errors import BadConfig
from studio.launched import is_main, started_processes
from studio.trainers.loop.draws import micro_batches
from studio.trainers.loop.group import Group
from tests.support.groups import IMAGE, assert_same, begun, studio, train_in_processes, wait_for, workers
from tests.support.in_processes import train_all

# -- shares --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("batch", "accumulation", "size"), [(4, 1, 2), (3, 1, 2), (1, 4, 3), (5, 2, 4), (8, 1, 8)])
def test_every_sample_of_a_step_is_in_one_process(batch, accumulation, size):
    """The shares are the samples that one process draws, none twice, and none is larger than its part of a batch."""
    for step in (0, 7):
        wanted = [n for part in micro_batches(step, batch, accumulation, Group()) for n in part]
        found = [micro_batches(step, batch, accumulation, Group(rank, size)) for rank in range(size)]
        assert [n for parts in found for part in parts for n in part] == wanted
        assert max(len(part) for parts in found for part in parts) <= -(-batch // size)
        counts = [sum(map(len, parts)) for parts in found]
        assert max(counts) - min(counts) <= 1


def test_more_processes_than_samples_are_refused():
    Group(0, 4).check_room(4)
    with pytest.raises(BadConfig, match="a step has 3 samples and 4 processes were started"):
        Group(0, 4).check_room(3)


def test_what_a_launcher_says(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert started_processes() == (1, 2)
    assert not is_main()
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(BadConfig, match="WORLD_SIZE='two'"):
        started_processes()
    assert is_main()  # of a command that is no training, whatever somebody else means by that variable


# -- real processes ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(bases, tmp_path_factory):
    """The same trainings in this process, and in two, with the base whole and in parts."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    train_all(bases, one, {"whole": {}})
    train_in_processes(bases, two, "usual")
    return one, two


@pytest.mark.parametrize("way", ["whole", "parts"])
@pytest.mark.parametrize("name", ["unet", "mmdit", "llama"])
def test_two_processes_train_what_one_does(runs, name, way):
    """Losses and adapter, whether each process holds the whole base or a part; and what is written is written once."""
    one, two = runs
    assert_same(one / f"{name}-whole", two / f"{name}-{way}")
    files = [sorted(p.name for p in (top / folder).rglob("*"))
             for top, folder in ((one, f"{name}-whole"), (two, f"{name}-{way}"))]  # fmt: skip
    assert files[0] == files[1]


def test_processes_with_other_settings_are_refused_by_name(runs):
    for rank in range(2):
        said = (runs[1] / f"odd-{rank}.txt").read_text()
        assert "process 1 was started with other settings than process 0" in said and "seed" in said
    assert not (runs[1] / "odd").exists()


@pytest.mark.slow
def test_the_command_says_everything_once(tmp_path):
    """Shares of two samples and one, with a prior."""
    words = [*IMAGE, "--steps", "4", "--batch-size", "3"]
    studio(*words, "-o", tmp_path / "one")
    _, said = studio(*words, "-o", tmp_path / "two", processes=2)
    assert_same(tmp_path / "one", tmp_path / "two")
    assert said.count("step 4/4") == 1 and said.count("adapter: ") == 1


@pytest.mark.slow
def test_a_killed_process_stops_the_other_and_the_run_goes_on(tmp_path):
    """kill -9 of one of two: the other ends, the checkpoint stands, and one process finishes what two have begun."""
    words = [*IMAGE, "--steps", "12", "--batch-size", "4", "--checkpoint-every", "2"]
    studio(*words, "-o", tmp_path / "whole")
    folder = tmp_path / "killed"
    started = begun(*words, "-o", folder)
    wait_for(lambda: list(folder.glob("checkpoints/step-*.state")), started)
    os.kill(workers(started.pid)[-1], signal.SIGKILL)
    _, said = started.communicate(timeout=200)
    assert started.returncode != 0 and ("has ended" in said or "was killed" in said), said[-2000:]
    assert list(folder.glob("checkpoints/step-*.state")) and not (folder / "result.toml").exists()
    studio(*words, "-o", folder)
    assert_same(tmp_path / "whole", folder)
    assert read_toml(folder / "run.toml")["machine"]["processes"] == ["2", "1"]
    assert "2 processes" in (folder / "report.html").read_text()


@pytest.mark.slow
def test_an_interrupted_group_saves_and_goes_on(tmp_path):
    """Ctrl-C of the launcher: the step is finished and saved, and the same command ends as a run in one go does."""
    words = [*IMAGE, "--steps", "14", "--batch-size", "4", "--checkpoint-every", "0"]
    studio(*words, "-o", tmp_path / "whole")
    folder = tmp_path / "interrupted"
    log = folder / "log.jsonl"
    started = begun(*words, "-o", folder, start_new_session=True)
    wait_for(lambda: log.exists() and len(log.read_text().splitlines()) > 2, started)
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=200)
    assert started.returncode == 130 and "Traceback" not in said, (started.returncode, said[-3000:])
    assert "the same command goes on from there" in said
    assert len(list(folder.glob("checkpoints/step-*.state"))) == 1
    studio(*words, "-o", folder, processes=2)
    assert_same(tmp_path / "whole", folder)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate", "emoji", "x"], "launch starts trainings"),
        (["dreambooh", "emoji"], "did you mean 'dreambooth'"),
        ([], "say what"),
    ],
)
def test_launch_refuses_what_does_not_train(words, message):
    code, said = studio("launch", "2", "--", *words, check=False)
    assert code == 2 and message in said and "Traceback" not in said


def test_what_is_wrong_is_said_once(tmp_path):
    code, said = studio(*IMAGE, "--steps", "2", "--batch-size", "1", "-o", tmp_path / "r", processes=2, check=False)
    assert code == 2 and said.count("a step has 1 sample and 2 processes were started") == 1, said
    assert "Traceback" not in said and not (tmp_path / "r").exists()
