"""``studio generate --from``: a picture made again, or one like it, from what its file says."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studio.commands.show import Show
from studio.commands.words import AdapterWord
from studio.errors import BadConfig, DoesNotFit

if TYPE_CHECKING:
    from studio.pipelines import ImagePipeline, Wanted
    from studio.pipelines.recalled import Recalled

__all__ = ["as_recalled", "base_of", "load_recalled"]

Load = Callable[[AdapterWord], dict[str, Any]]


def base_of(recalled: Recalled, base: str | None) -> str:
    """Returns the base that a picture is drawn on.

    Args:
        recalled: what the picture says.
        base: the base that was named; None: none was.

    Raises:
        BadConfig: none was, and the picture's own is not an embedded one.
    """
    from studio.families import BASES

    if base is not None:
        return base
    if recalled.base in BASES:
        return recalled.base
    said = f"was drawn on {recalled.base!r}" if recalled.base else "does not say on which base it was drawn"
    raise BadConfig(f"the picture {said}; say where such a one is: studio generate BASE --from FILE")


def load_recalled(
    pipe: ImagePipeline, recalled: Recalled, words: Sequence[AdapterWord], load: Load, show: Show, *, pickled: bool
) -> list[dict[str, Any]]:
    """Loads the picture's adapters, and those that are given beside them.

    Args:
        pipe: loads them. recalled: what the picture says. words: the files, and folders of files, that were named.
        load: loads one that is not the picture's. show: takes a line for each of the picture's.
        pickled: allow files that may hold more than tensors.

    Returns:
        What the JSON output says about them.

    Raises:
        UnknownName: one of the picture's is not among them.
    """
    from studio.pipelines.regenerate import load_again

    if recalled.content is None:
        return [load(word) for word in words]
    beside = set(load_again(pipe, recalled.content, [word.file for word in words], pickled=pickled))
    used = [{key: use[key] for key in ("name", "file", "strength")} for use in recalled.content["adapters"]]
    for entry in used:
        show.tell(f"{entry['name']}: of the picture, from {entry['file']}")
    return used + [load(word) for word in words if word.file in beside]


@contextlib.contextmanager
def as_recalled(
    pipe: ImagePipeline, recalled: Recalled, asked: dict[str, Any], masks: Sequence[Path], show: Show, *, named: bool
) -> Iterator[Wanted]:
    """Yields what the picture says as one that is wanted, while the pipeline is as it was then.

    Args:
        pipe: which has its adapters. recalled: what it says.
        asked: what the command line says otherwise; what the picture started from is taken from it.
        masks: files of the masks of its strengths. show: takes what the picture says and is not used, in one line.
        named: whether the base was named on the command line.

    Yields:
        The picture, as it says.

    Raises:
        UnknownName: what it started from is not given. DoesNotFit: the base has other weights.
    """
    from studio.pipelines.recalled import recalled_as
    from studio.pipelines.regenerate import as_made, start_of

    if recalled.said is not None:
        wanted, unused = recalled_as(pipe, recalled.said)
        _remark(recalled.said.tool, unused, show)
        yield wanted
        return
    content = recalled.content or {}
    _compare(pipe, content["base"], show, named=named)
    beside = {name: info.strength for name, info in pipe.adapters.items() if name not in _names(content)}
    with as_made(pipe, content, masks) as wanted:
        start = _start(start_of, pipe, content, asked, show)
        blend = {**wanted.blend, **beside} if isinstance(wanted.blend, dict) and beside else wanted.blend
        yield replace(wanted, blend=blend, **start)


def _names(content: Any) -> set[str]:
    return {use["name"] for use in content["adapters"]}


def _start(start_of: Callable[..., dict[str, Any]], pipe: Any, content: Any, asked: Any, show: Show) -> dict[str, Any]:
    try:
        return start_of(pipe, content, asked.get("image"), asked.get("mask"))
    except DoesNotFit as problem:
        show.note(f"{problem}; it is drawn from what was given")
        return {"strength": content["start"]["strength"]}


def _compare(pipe: Any, made_by: Any, show: Show, *, named: bool) -> None:
    if made_by["hash"] and pipe.base.hash != made_by["hash"]:
        what = (
            f"the picture was made by the base {made_by['id']!r} with weights {made_by['hash'][:12]}…, and "
            f"{pipe.base.id!r} has {pipe.base.hash[:12]}…"
        )
        if not named:
            raise DoesNotFit(f"{what}; give the one that made it, or name this one")
        show.note(f"{what}: it will be another picture")


def _remark(tool: str, unused: Sequence[str], show: Show) -> None:
    line = f"the picture is {tool}'s, whose noise is another: the new one is like it, not equal"
    show.note(f"{line}; not used: {'; '.join(unused)}" if unused else line)
