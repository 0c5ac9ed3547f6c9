"""Prompt matrix: the prompt's parts between ``|`` in all combinations, the first part always.

As in A1111: of ``a | b | c`` the prompts are ``a``, ``a, b``, ``a, c`` and ``a, b, c``; the first half of the parts
makes the columns of the sheet, the second its rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from studio.errors import BadConfig
from studio.pipelines.asking import Wanted
from studio.pipelines.grids.plan import Grid, Plan
from studio.pipelines.image import ImagePipeline

__all__ = ["plan_matrix", "prompt_matrix"]

PARTS_MOST = 10  # beside the first: 1024 pictures
_OPENING, _CLOSING = "([{", ")]}"


def prompt_matrix(
    pipe: ImagePipeline, wanted: str | Wanted, *, title: str | None = None, batch_size: int | None = None
) -> Grid:
    """Draws a prompt's parts in all combinations, and a sheet of them.

    Args:
        pipe: which draws.
        wanted: a prompt with ``|``, or a whole picture of one. A ``|`` in brackets, or behind ``\\``, divides nothing.
        title: above everything; None: the first part.
        batch_size: images that are computed together.

    Raises:
        BadConfig: a prompt without ``|``, or with too many; or what :meth:`ImagePipeline.generate` refuses.
        UnknownName: see there. BadFile: see there. DoesNotFit: see there. StudioError: see there.
    """
    plan = plan_matrix(wanted)
    made = sorted(pipe.make(plan.wanted, batch_size=batch_size), key=lambda one: one.index)
    return plan.grid((one.image for one in made), title=plan.wanted[0].prompt if title is None else title)


def plan_matrix(wanted: str | Wanted) -> Plan:
    """Returns the pictures of a prompt matrix, to be drawn with :meth:`ImagePipeline.make`.

    Args:
        wanted: see :func:`prompt_matrix`.

    Raises:
        BadConfig: a prompt without ``|``, or with too many.

    Example:
        >>> plan = plan_matrix("a dog | in snow | at night")
        >>> [one.prompt for one in plan.wanted]
        ['a dog', 'a dog, in snow', 'a dog, at night', 'a dog, in snow, at night']
        >>> plan.columns, plan.rows
        (('-', 'in snow'), ('-', 'at night'))
    """
    wanted = Wanted(prompt=wanted) if isinstance(wanted, str) else wanted
    first, *others = parts = [part.strip() for part in _parts(wanted.prompt)]
    if len(parts) == 1:
        raise BadConfig(f"the prompt {wanted.prompt[:200]!r} has no parts to combine; write them with | between")
    if len(others) > PARTS_MOST:
        raise BadConfig(
            f"{len(others)} parts make 2^{len(others)} pictures; give at most {PARTS_MOST} behind the first"
        )
    half = math.ceil(len(others) / 2)
    across, down = list(_subsets(others[:half])), list(_subsets(others[half:]))
    prompts = [", ".join(part for part in (first, *x, *y) if part) for y in down for x in across]
    return Plan(
        wanted=tuple(replace(wanted, prompt=prompt, resolved=None) for prompt in prompts),
        columns=tuple(", ".join(some) or "-" for some in across),
        rows=tuple(", ".join(some) or "-" for some in down) if len(down) > 1 else (),
    )


def _subsets(parts: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """All of them, in the order of binary numbers whose lowest digit is the first part."""
    for number in range(2 ** len(parts)):
        yield tuple(part for place, part in enumerate(parts) if number >> place & 1)


def _parts(prompt: str) -> Iterator[str]:
    """A prompt's parts between ``|`` that stand in no brackets and behind no stroke."""
    part, depth, escaped = "", 0, False
    for letter in prompt:
        if letter == "|" and not depth and not escaped:
            yield part
            part = ""
            continue
        depth = max(0, depth + (not escaped and letter in _OPENING) - (not escaped and letter in _CLOSING))
        escaped = letter == "\\" and not escaped
        part += letter
    yield part
