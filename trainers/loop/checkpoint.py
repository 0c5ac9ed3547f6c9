"""Checkpoints: everything that the next step depends on, in one file that is there completely or not at all.

What is drawn depends on the step's number only, and so does the learning rate; so a checkpoint is the adapter's
tensors and scratch, the optimizer's state, the moving average and the number of steps. Beside the newest ones stands
the adapter as it was, as a file that loads like any other. A state file begins with the SHA-256 of the rest and holds
the identity of its run, so that one that was damaged or put there later is never taken for what was written.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from studio.atomic import atomic_write
from studio.errors import BadFile
from studio.temporary import remove

__all__ = ["Checkpoint", "adapter_file", "newest", "packed", "read", "unpacked", "write"]

VERSION: Final = 2
KEPT: Final = 2  # states to go on from; adapter files are all kept, they are small
MARK: Final = b"studio state, SHA-256 "
"""Begins a state file; the digest in hexadecimal and a newline follow, then the bytes that it is of."""
BEFORE_MARKS: Final = b"PK"  # what torch.save writes: states of earlier versions have no checksum


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


def write(folder: Path, checkpoint: Checkpoint, run: str = "") -> None:
    """Writes the state and removes all but the newest ones.

    Args:
        folder: the run's folder.
        checkpoint: the state.
        run: the run's identity.

    Raises:
        BadFile: nothing can be written there; the checkpoints before are as they were.
    """
    content = packed(checkpoint, run)
    atomic_write(_state_file(folder, checkpoint.step), MARK + _digest(content) + b"\n" + content)
    for file in _states(folder)[:-KEPT]:
        remove(file)


def packed(checkpoint: Checkpoint, run: str = "") -> bytes:
    """Returns a state as bytes, which a file holds and other processes are handed."""
    buffer = io.BytesIO()
    torch.save({"version": VERSION, "run": run, **vars(checkpoint)}, buffer)
    return buffer.getvalue()


def unpacked(content: bytes) -> tuple[int, str, Checkpoint]:
    """Returns the version, the run's identity and the state that bytes hold; nothing but tensors and plain values."""
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state.pop("version"), state.pop("run", ""), Checkpoint(**state)


def newest(folder: Path, run: str = "", say: Callable[[str], None] = lambda line: None) -> Checkpoint | None:
    """Returns the newest checkpoint that can be read, None where there is none.

    Args:
        folder: the run's folder.
        run: the run's identity; "" takes the states of any.
        say: takes a line for each checkpoint that is passed over, and for one that no checksum guards.

    Raises:
        BadFile: there are checkpoints, and none can be read.
    """
    problems = []
    for file in reversed(_states(folder)):
        try:
            found = read(file, run)
        except BadFile as problem:
            problems.append(str(problem))
            continue
        if problems:
            say(f"{'; '.join(problems)}; the checkpoint before, of step {found.step}, is taken")
        if not _marked(file):
            say(f"{file} is of an earlier version, which wrote no checksum: whether it is whole cannot be told")
        return found
    if problems:
        raise BadFile(f"{'; '.join(problems)}; remove {folder / 'checkpoints'} to start anew")
    return None


def read(file: Path, run: str = "") -> Checkpoint:
    """Reads one state; nothing but tensors and plain values is accepted.

    Args:
        file: the state file.
        run: the run's identity; "" takes the state of any.

    Raises:
        BadFile: it is damaged, of another version or run, or not of the step that its name says.
    """
    content = _checked(file)
    try:
        version, own, found = unpacked(content)
    except Exception as problem:  # whatever torch's reader makes of bytes that no checksum guards
        raise BadFile(f"{file} is damaged ({type(problem).__name__})") from None
    if version != VERSION:
        raise BadFile(f"{file} was written by another version of the studio")
    if run and own not in ("", run):
        raise BadFile(f"{file} is the state of another run")
    if found.step != _step(file):
        raise BadFile(f"{file} holds the state after step {found.step}: it was renamed")
    return found


def _checked(file: Path) -> bytes:
    """Returns the bytes behind the checksum of a state file, if they are what was written."""
    try:
        content = file.read_bytes()
    except OSError as problem:
        raise BadFile(f"{file} cannot be read: {problem.strerror}") from None
    if content.startswith(BEFORE_MARKS):
        return content
    head, _, content = content.partition(b"\n")
    if head != MARK + _digest(content):
        raise BadFile(f"{file} is damaged (its bytes are not those that were written)")
    return content


def remove_states(folder: Path) -> None:
    """Removes what only an unfinished run needs."""
    for file in _states(folder):
        remove(file)


def _states(folder: Path) -> list[Path]:
    """The state files, the oldest first; other files are none of ours."""
    found = (folder / "checkpoints").glob("step-*.state")
    return sorted((file for file in found if re.fullmatch(r"step-\d{6,18}", file.stem) and file.is_file()), key=_step)


def _step(file: Path) -> int:
    return int(file.stem.removeprefix("step-"))


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def _marked(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(len(MARK)) == MARK
