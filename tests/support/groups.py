"""Trainings in real processes, by torch's launcher and gloo on this machine, and what they are held against."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

__all__ = [
    "IMAGE", "assert_same", "begun", "environment", "losses", "studio", "train_in_processes", "wait_for", "workers",
]  # fmt: skip

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "studio" / "families" / "emoji" / "instances" / "robot"
IMAGE = ["dreambooth", "emoji", str(PICTURES), "--instance-prompt", "a photo of sks robot", "--class-prompt", "a robot",
         "--preview-every", "0", "--seed", "3"]  # fmt: skip


def environment() -> dict[str, str]:
    """This process's, without what a launcher may have said."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    found = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "support")))
    return {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": found}


def studio(*words: Any, processes: int = 1, check: bool = True) -> tuple[int, str]:
    """Runs the command line in real processes; returns its exit code and what it said."""
    start = [] if processes == 1 else ["launch", str(processes), "--"]
    done = subprocess.run([sys.executable, "-m", "studio", *start, *map(str, words)], env=environment(), timeout=500,
                          capture_output=True, text=True, check=False)  # fmt: skip
    if check:
        assert done.returncode == 0, done.stderr[-2000:]
    return done.returncode, done.stdout + done.stderr


def begun(*words: Any, **more: Any) -> subprocess.Popen[str]:
    """Starts the command line in two processes."""
    command = [sys.executable, "-m", "studio", "launch", "2", "--", *map(str, words)]
    return subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True, **more)


def wait_for(ready: Callable[[], Any], started: subprocess.Popen[str], seconds: float = 400) -> None:
    """Waits until something is so, or what was started has ended."""
    until = time.monotonic() + seconds
    while started.poll() is None and time.monotonic() < until and not ready():
        time.sleep(0.02)


def workers(parent: int) -> list[int]:
    """Returns the process ids of a launcher's workers, in the order in which they were started."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return sorted(int(child) for child in children)


def train_in_processes(bases: Path, out: Path, what: str) -> None:
    """Runs ``in_processes.py`` in two processes."""
    script = ROOT / "tests" / "support" / "in_processes.py"
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run([*words, str(bases), str(out), what], env=environment(), timeout=900, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def losses(folder: Path) -> list[float]:
    """Returns the losses of a run, by step."""
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_same(one: Path, other: Path, error: float = 1e-5, floor: float = 0.0) -> None:
    """The same losses, and the same adapter, each to this relative error; losses below ``floor`` to that of it."""
    first, second = losses(one), losses(other)
    assert len(first) == len(second) and all(
        abs(a - b) <= error * max(abs(a), floor) for a, b in zip(first, second, strict=True)
    )
    left, right = (load_file(folder / "adapter.safetensors") for folder in (one, other))
    assert left.keys() == right.keys()
    apart = sum((left[key].double() - right[key].double()).square().sum() for key in left) ** 0.5
    assert apart <= error * sum(tensor.double().square().sum() for tensor in left.values()) ** 0.5
