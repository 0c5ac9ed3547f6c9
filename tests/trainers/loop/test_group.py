"""Several processes train what one does: real ones, by torch's launcher and gloo, on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from studio.config import read_toml
from studio.errors import BadConfig
from studio.launched import is_main, started_processes
from studio.trainers.loop.draws import micro_batches
from studio.trainers.loop.group import Group
from tests.support.in_processes import train_all
from tests.support.tiny_pipelines import build

ROOT = Path(__file__).parents[3]
PICTURES = ROOT / "studio" / "families" / "emoji" / "instances" / "robot"
IMAGE = ["dreambooth", "emoji", str(PICTURES), "--instance-prompt", "a photo of sks robot", "--class-prompt", "a robot",
         "--preview-every", "0", "--seed", "3"]  # fmt: skip


def environment():
    """This process's, without what a launcher may have said."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    found = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "support")))
    return {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": found}


def studio(*words, processes=1, check=True):
    """Runs the command line in real processes; returns its exit code and what it said."""
    start = [] if processes == 1 else ["launch", str(processes), "--"]
    done = subprocess.run([sys.executable, "-m", "studio", *start, *map(str, words)], env=environment(), timeout=500,
                          capture_output=True, text=True, check=False)  # fmt: skip
    if check:
        assert done.returncode == 0, done.stderr[-2000:]
    return done.returncode, done.stdout + done.stderr


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_same(one, other, error=1e-5):
    """The same losses, and the same adapter, each to this relative error."""
    first, second = losses(one), losses(other)
    assert len(first) == len(second) and all(abs(a - b) <= error * abs(a) for a, b in zip(first, second, strict=True))
    left, right = (load_file(folder / "adapter.safetensors") for folder in (one, other))
    assert left.keys() == right.keys()
    apart = sum((left[key].double() - right[key].double()).square().sum() for key in left) ** 0.5
    assert apart <= error * sum(tensor.double().square().sum() for tensor in left.values()) ** 0.5


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
def bases(tmp_path_factory, tiny_base, tiny_language):
    """A UNet, an MMDiT and a small language model, pictures and texts."""
    folder = tmp_path_factory.mktemp("bases")
    (folder / "unet").symlink_to(tiny_base)
    (folder / "llama").symlink_to(tiny_language)
    build("flux1").save_pretrained(folder / "mmdit")
    (folder / "photos").mkdir()
    for number in range(5):
        pixels = torch.randint(0, 256, (64, 64, 3), generator=torch.Generator().manual_seed(number)).numpy()
        Image.fromarray(pixels.astype("uint8")).save(folder / "photos" / f"{number}.png")
    lines = [{"prompt": f"What is {n} and {n}?", "completion": f" It is {2 * n}."} for n in range(12)]
    (folder / "texts.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def runs(bases, tmp_path_factory):
    """The same trainings in this process, and in two, with the base whole and in parts."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    train_all(bases, one, {"whole": {}})
    script = ROOT / "tests" / "support" / "in_processes.py"
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run([*words, str(bases), str(two), "usual"], env=environment(), timeout=500, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
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
    started = subprocess.Popen([sys.executable, "-m", "studio", "launch", "2", "--", *words, "-o", str(folder)],
                               env=environment(), stderr=subprocess.PIPE, text=True)  # fmt: skip
    until = time.monotonic() + 200
    while not list(folder.glob("checkpoints/step-*.state")) and started.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    victims = _workers(started.pid)
    os.kill(victims[-1], signal.SIGKILL)
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
    command = [sys.executable, "-m", "studio", "launch", "2", "--", *words, "-o", str(folder)]
    started = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True)
    until = time.monotonic() + 200
    while started.poll() is None and time.monotonic() < until:
        if (folder / "log.jsonl").exists() and len((folder / "log.jsonl").read_text().splitlines()) > 2:
            break
        time.sleep(0.02)
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=200)
    assert started.returncode == 130 and "Traceback" not in said, (started.returncode, said[-3000:])
    assert "the same command goes on from there" in said
    assert len(list(folder.glob("checkpoints/step-*.state"))) == 1
    studio(*words, "-o", folder, processes=2)
    assert_same(tmp_path / "whole", folder)


def _workers(parent):
    """The process ids of a launcher's workers, in the order in which they were started."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return sorted(int(child) for child in children)


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
