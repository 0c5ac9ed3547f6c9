"""Checkpoints: everything that the next step depends on, in one file that is there completely or not at all.

What is drawn depends on the step's number only, and so does the learning rate; so a checkpoint is the adapter's
tensors and scratch, the optimizer's state, the moving average and the number of steps. Beside the newest ones stands
the adapter as it was, as a file that loads like any other.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from studio.atomic import atomic_write
from studio.errors import BadFile

__all__ = ["Checkpoint", "adapter_file", "newest", "read", "write"]

VERSION: Final = 2
KEPT: Final = 2  # states to go on from; adapter files are all kept, they are small


@dataclass(frozen=True)
class Checkpoint:
    """The state after ``step`` optimizer steps.

    Args:
        step: steps done.
        tensors: the adapter's tensors by key.
        scratch: what its method keeps beside them while it trains, by key.
        average: their moving average; empty without one.
        optimizer: the optimizer's ``state_dict()``.
    """

    step: int
    tensors: Mapping[str, Tensor]
    scratch: Mapping[str, Tensor]
    average: Mapping[str, Tensor]
    optimizer: Mapping[str, Any]


def adapter_file(folder: Path, step: int) -> Path:
    """Returns where the adapter of a checkpoint is."""
    return folder / "checkpoints" / f"step-{step:06d}.safetensors"


def _state_file(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step-{step:06d}.state"


def write(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes the state and removes all but the newest ones.

    Raises:
        BadFile: nothing can be written there; the checkpoints before are as they were.
    """
    buffer = io.BytesIO()
    torch.save({"version": VERSION, **vars(checkpoint)}, buffer)
    atomic_write(_state_file(folder, checkpoint.step), buffer.getvalue())
    for file in _states(folder)[:-KEPT]:
        file.unlink(missing_ok=True)


def newest(folder: Path) -> Checkpoint | None:
    """Returns the newest checkpoint that can be read, None where there is none.

    Raises:
        BadFile: there are checkpoints, and none can be read.
    """
    problems = []
    for file in reversed(_states(folder)):
        try:
            return read(file)
        except BadFile as problem:
            problems.append(str(problem))
    if problems:
        raise BadFile(f"{'; '.join(problems)}; remove {folder / 'checkpoints'} to start anew")
    return None


def read(file: Path) -> Checkpoint:
    """Reads one state; nothing but tensors and plain values is accepted.

    Raises:
        BadFile: it is damaged, or of another version.
    """
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
        if content.pop("version") != VERSION:
            raise BadFile(f"{file} was written by another version of the studio")
        return Checkpoint(**content)
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, AttributeError, pickle.UnpicklingError) as problem:
        raise BadFile(f"{file} is damaged ({type(problem).__name__})") from None


def remove_states(folder: Path) -> None:
    """Removes what only an unfinished run needs."""
    for file in _states(folder):
        file.unlink(missing_ok=True)


def _states(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("step-*.state"))
