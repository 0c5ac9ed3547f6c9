"""Interrupted runs: the same command goes on bit for bit; other settings, live runs and foreign folders are refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from studio.adapters import LoRA
from studio.errors import BadFile, DoesNotFit
from studio.trainers import DreamBooth, train
from studio.trainers.image.diffusion import Diffusion
from studio.trainers.loop import checkpoint, training
from studio.trainers.loop.claim import claim
from studio.trainers.loop.lock import locked
from studio.trainers.loop.log import Log, console

STEPS = 6


@pytest.fixture
def task(tiny_base, photos):
    return DreamBooth(
        base=tiny_base, instance_images=photos, instance_prompt="a photo of sks robot", class_prompt="a photo of robot",
        prior="self", text_encoder=True, preview_prompts=(), flip=True,
    )  # fmt: skip


@pytest.fixture
def settings(tmp_path):
    return {
        "steps": STEPS, "batch_size": 2, "quiet": True, "cache": str(tmp_path / "cache"), "checkpoint_every": 2,
        "adapter": LoRA(rank=2, dropout=0.3), "ema": 0.5, "warmup": 2, "schedule": "cosine",
    }  # fmt: skip


class Killed(Exception):
    """Stands for a process that ends here, without any of our code running after it."""


def die_at(monkeypatch, step):
    """Lets the process "die" in the middle of a step."""
    whole = Diffusion.after_step

    def after_step(self, done):
        whole(self, done)
        if done == step:
            raise Killed

    monkeypatch.setattr(Diffusion, "after_step", after_step)


@pytest.mark.parametrize("step", [3, 4, 5])
def test_a_killed_run_goes_on_bit_for_bit(task, settings, tmp_path, monkeypatch, step):
    whole = train(task, output=tmp_path / "whole", **settings)
    with monkeypatch.context() as patch:
        die_at(patch, step)
        with pytest.raises(Killed):
            train(task, output=tmp_path / "run", **settings)
    with (tmp_path / "run" / "log.jsonl").open("a") as log:
        log.write('{"step": 99, "lo')  # what a kill in the middle of a line leaves
    resumed = train(task, output=tmp_path / "run", **settings)
    assert resumed.adapter.read_bytes() == whole.adapter.read_bytes()
    assert resumed.losses == whole.losses
    assert (tmp_path / "run" / "run.toml").read_bytes() == (tmp_path / "whole" / "run.toml").read_bytes()


def test_a_run_that_died_before_its_first_checkpoint_starts_anew(task, settings, tmp_path):
    whole = train(task, output=tmp_path / "whole", **settings)
    run = tmp_path / "run"
    run.mkdir()  # as a kill after the first logged step leaves it
    (run / "run.toml").write_bytes((whole.folder / "run.toml").read_bytes())
    (run / "log.jsonl").write_text((whole.folder / "log.jsonl").read_text().splitlines()[0] + "\n")
    (run / ".lock").write_text(json.dumps({"pid": 2**22 + 1, "started": "never", "host": os.uname().nodename}))
    assert train(task, output=run, **settings).adapter.read_bytes() == whole.adapter.read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_finish_the_step_save_and_surface(task, settings, tmp_path, monkeypatch, number):
    whole = train(task, output=tmp_path / "whole", **settings)
    before = signal.getsignal(number)
    finished = Diffusion.after_step

    def after_step(self, done):
        finished(self, done)
        if done == 3:
            signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(Diffusion, "after_step", after_step)
        with pytest.raises(KeyboardInterrupt):
            train(task, output=tmp_path / "run", **settings)
    assert signal.getsignal(number) == before
    assert checkpoint.newest(tmp_path / "run").step == 3
    assert (tmp_path / "run" / "checkpoints" / "step-000003.safetensors").is_file()
    assert train(task, output=tmp_path / "run", **settings).adapter.read_bytes() == whole.adapter.read_bytes()


def test_previews_that_an_interruption_left_out_are_made_when_the_run_goes_on(task, settings, tmp_path, monkeypatch):
    finished, drawn = Diffusion.after_step, []

    def after_step(self, done):
        finished(self, done)
        if done == 4:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Diffusion, "after_step", after_step)
    monkeypatch.setattr(
        "studio.trainers.loop.training.save_previews", lambda folder, step, lesson, **_: drawn.append(step)
    )
    with pytest.raises(KeyboardInterrupt):
        train(task, output=tmp_path / "run", **settings, preview_every=2)
    assert drawn == [0, 2]
    train(task, output=tmp_path / "run", **settings, preview_every=2)
    assert drawn == [0, 2, 4, 6]


@pytest.mark.parametrize("where", ["save_previews", "taken"])
def test_an_interruption_behind_the_last_step_keeps_all_of_it(task, settings, tmp_path, monkeypatch, where):
    """What is shown and measured at the end may take minutes; the run may have no checkpoint by then."""
    settings |= {"checkpoint_every": 0, "preview_every": 0}
    whole = train(task, output=tmp_path / "whole", **settings)
    steps, finished = [], Diffusion.after_step

    def after_step(self, done):
        steps.append(done)
        finished(self, done)

    monkeypatch.setattr(Diffusion, "after_step", after_step)
    with monkeypatch.context() as patch:
        kept = getattr(training, where)

        def interrupted(*given, **named):
            if len(steps) == STEPS:
                raise KeyboardInterrupt
            return kept(*given, **named)

        patch.setattr(training, where, interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(task, output=tmp_path / "run", **settings)
    assert (tmp_path / "run" / "adapter.safetensors").read_bytes() == whole.adapter.read_bytes()
    again = train(task, output=tmp_path / "run", **settings)
    assert len(steps) == STEPS, "no step is done again"
    assert again.adapter.read_bytes() == whole.adapter.read_bytes() and again.losses == whole.losses
    assert not list((tmp_path / "run").rglob("*.state"))


@pytest.mark.parametrize("when", [1, 3, 6])
@pytest.mark.parametrize("moved", [True, False])
def test_a_folder_that_goes_meanwhile_is_named_and_not_made_anew(task, settings, tmp_path, monkeypatch, when, moved):
    finished, run = Diffusion.after_step, tmp_path / "run"

    def after_step(self, done):
        finished(self, done)
        if done == when:
            run.rename(tmp_path / "elsewhere") if moved else shutil.rmtree(run)

    monkeypatch.setattr(Diffusion, "after_step", after_step)
    with pytest.raises(BadFile, match=f"{run / 'run.toml'} is gone: the folder was removed or moved"):
        train(task, output=run, **settings)
    assert not run.exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")  # noqa: PTH110
def test_a_log_that_cannot_be_written_is_named():
    out = console(quiet=True)
    log = Log(Path("/dev/full"), total=2, before=(), out=out, device=torch.device("cpu"), tensorboard=None)
    with pytest.raises(BadFile, match="cannot write /dev/full: no space left on the device"), log:
        log.step(1, {"loss": 1.0, "learning_rate": 1.0, "gradient_norm": 1.0})


def test_a_finished_run_says_so_and_trains_nothing(task, settings, tmp_path, monkeypatch):
    first = train(task, output=tmp_path / "run", **settings)
    stamp = first.adapter.stat().st_mtime_ns
    monkeypatch.setattr(Diffusion, "loss", None)
    again = train(task, output=tmp_path / "run", **settings)
    assert again.already and again.losses == first.losses and again.adapter.stat().st_mtime_ns == stamp
    first.adapter.write_bytes(b"other")
    with pytest.raises(BadFile, match="was changed"):
        train(task, output=tmp_path / "run", **settings)


def test_other_settings_are_refused_by_name(task, settings, tmp_path, picture, photos):
    train(task, output=tmp_path / "run", **settings)
    for change, message in (
        ({"steps": 7}, "training.steps was 6 and is 7"),
        ({"adapter": LoRA(rank=3, dropout=0.3)}, "adapter.rank was 2 and is 3"),
        ({"seed": 1}, "training.seed was 0 and is 1"),
        ({"learning_rate": 0.5}, "learning_rate"),
    ):
        with pytest.raises(DoesNotFit, match=message):
            train(task, output=tmp_path / "run", **{**settings, **change})
    picture(7, (64, 64)).save(photos / "one_more.png")
    with pytest.raises(DoesNotFit, match="inputs.instance_images was"):
        train(task, output=tmp_path / "run", **settings)


def test_settings_that_change_nothing_may_change(task, settings, tmp_path, monkeypatch):
    whole = train(task, output=tmp_path / "whole", **settings)
    with monkeypatch.context() as patch:
        die_at(patch, 5)
        with pytest.raises(Killed):
            train(task, output=tmp_path / "run", **settings)
    free = {"checkpoint_every": 0, "preview_every": 0, "cache": str(tmp_path / "other")}
    resumed = train(task, output=tmp_path / "run", **{**settings, **free})
    assert resumed.adapter.read_bytes() == whole.adapter.read_bytes()


def test_a_folder_of_something_else_is_refused_untouched(task, settings, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("all of it")
    with pytest.raises(BadFile, match="is no run: it holds thesis.tex"):
        train(task, output=tmp_path / "run", **settings)
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_an_unwritable_place_is_refused_before_anything_is_opened(task, settings, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadFile, match="a part of that path is a file"):
        train(task, output=tmp_path / "file" / "run", **settings)
    with pytest.raises(BadFile, match="cannot write"):
        train(task, output="/proc/run", **settings)


def test_a_full_disk_is_refused_before_training(task, settings, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(BadFile, match=r"no space left on the device.*a run here needs \d+ MiB"):
        train(task, output=tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_falls_back_to_the_one_before(task, settings, tmp_path, monkeypatch):
    whole = train(task, output=tmp_path / "whole", **settings)
    with monkeypatch.context() as patch:
        die_at(patch, 5)
        with pytest.raises(Killed):
            train(task, output=tmp_path / "run", **settings)
    newest = tmp_path / "run" / "checkpoints" / "step-000004.state"
    newest.write_bytes(newest.read_bytes()[:1000])
    assert checkpoint.newest(tmp_path / "run").step == 2
    assert train(task, output=tmp_path / "run", **settings).adapter.read_bytes() == whole.adapter.read_bytes()


def test_checkpoints_load_nothing_but_tensors(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.system, ("true",)

    (tmp_path / "checkpoints").mkdir()
    torch.save({"version": 1, "step": 1, "tensors": Bomb()}, tmp_path / "checkpoints" / "step-000001.state")
    with pytest.raises(BadFile, match="is damaged"):
        checkpoint.newest(tmp_path)


def test_a_live_run_is_refused_and_a_dead_ones_lock_is_not(tmp_path):
    live = pytest.raises(DoesNotFit, match=f"still going on .process {os.getpid()}")
    with claim(tmp_path / "run"), live, claim(tmp_path / "run"):
        pass
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        from studio.trainers.loop.process import started

        holder = {"pid": child.pid, "started": started(child.pid), "host": os.uname().nodename}
        (tmp_path / "lock").write_text(json.dumps(holder))
        with pytest.raises(DoesNotFit, match=str(child.pid)), locked(tmp_path / "lock"):
            pass
    finally:
        child.kill()
        child.communicate()
    with locked(tmp_path / "lock"):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    reused = {**holder, "pid": os.getpid()}  # the same number, another process
    (tmp_path / "lock").write_text(json.dumps(reused))
    with locked(tmp_path / "lock"):
        pass
    assert not (tmp_path / "lock").exists()


def test_only_one_of_many_takes_over_a_dead_lock(tmp_path):
    (tmp_path / "lock").write_text(json.dumps({"pid": 2**22 + 1, "started": "never", "host": os.uname().nodename}))
    start, inside, most = threading.Barrier(8), [], []

    def take():
        start.wait()
        try:
            with locked(tmp_path / "lock"):
                inside.append(1)
                most.append(len(inside))
                threading.Event().wait(0.05)
                inside.pop()
        except DoesNotFit:
            pass

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most and max(most) == 1
