"""The losses that ``log.jsonl`` tells, and the one number that is shown of them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from studio.trainers.loop.curve import running_mean, smoothing

__all__ = ["Logged", "final_loss", "loss_name", "read_log"]

NAMED: Final = 4  # steps that are named one by one in a message


@dataclass(frozen=True)
class Logged:
    """What a log says of a run's first steps.

    Args:
        lines: the lines of the steps, in order.
        losses: of each of the steps; NaN where no line tells it.
        problems: sentences about what is missing, and about lines that are none of ours.
    """

    lines: tuple[str, ...]
    losses: tuple[float, ...]
    problems: tuple[str, ...]


def read_log(file: Path, steps: int) -> Logged:
    """Reads the log of a run.

    Args:
        file: ``log.jsonl``; it may be missing, torn, or hold lines of others.
        steps: how many steps are asked for; later ones are left out.

    Example:
        >>> import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "log.jsonl"
        >>> _ = file.write_text('{"step": 1, "loss": 0.5}\\n{"step": 3, "loss": 0.25}\\n{"st')
        >>> read_log(file, 3).losses, read_log(file, 3).problems
        ((0.5, nan, 0.25), ('log.jsonl lacks the loss of step 2',))
    """
    found: dict[int, tuple[str, float]] = {}
    foreign, lines = 0, _lines(file)
    for place, line in enumerate(lines, 1):
        entry = _entry(line)
        if entry is None:
            foreign += place < len(lines)  # a kill may leave half of the last one
        elif entry[0] <= steps:
            found.setdefault(entry[0], (line, entry[1]))
    losses = tuple(found[step][1] if step in found else math.nan for step in range(1, steps + 1))
    problems = [f"{foreign} line{'s' * (foreign > 1)} of {file.name} are no steps and are left out"] * (foreign > 0)
    lost = [step for step in range(1, steps + 1) if step not in found]
    if lost:
        named = f"step{'s' * (len(lost) > 1)} {', '.join(map(str, lost[:NAMED]))}"
        more = f" and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
        problems.append(f"{file.name} lacks the loss of {named}{more}")
    return Logged(tuple(found[step][0] for step in sorted(found)), losses, tuple(problems))


def final_loss(losses: Sequence[float]) -> float:
    """Returns the one number that bar, report and results give as a run's loss: the running mean at its end.

    Single losses jump with what was drawn, so none of them says how far a run has come.

    Example:
        >>> round(final_loss([1.0] * 99 + [5.0]), 3)
        1.4
    """
    return running_mean(losses, smoothing(len(losses)))[-1]


def loss_name(steps: int) -> str:
    """Returns what that number is called.

    Example:
        >>> loss_name(1200)
        'running mean over about 48 steps'
    """
    span = smoothing(steps)
    return f"running mean over about {span} steps" if span > 1 else "of the last step"


def _lines(file: Path) -> list[str]:
    if not file.is_file():  # a pipe would be waited for
        return []
    try:
        content = file.read_bytes()
    except OSError:
        return []
    return content.decode("utf-8", errors="replace").removesuffix("\n").split("\n") if content else []


def _entry(line: str) -> tuple[int, float] | None:
    """Returns step and loss of a line, None where it is no step."""
    try:
        entry = json.loads(line)
        step, loss = entry["step"], entry["loss"]
    except (ValueError, RecursionError, TypeError, KeyError):
        return None
    sound = isinstance(step, int) and not isinstance(step, bool) and step > 0 and isinstance(loss, (int, float))
    return (step, float(loss)) if sound and abs(loss) < math.inf else None
