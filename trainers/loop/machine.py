"""What the last bits of an adapter depend on besides the settings: noted in ``run.toml``, told where it changes."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch

from studio.version import __version__

__all__ = ["machine", "noted", "told", "versions"]

WORDS = {"threads": "{} threads", "torch": "torch {}", "device": "the device {}", "processes": "{} processes"}


def machine(device: torch.device, processes: int = 1) -> dict[str, str]:
    """Returns what the last bits depend on here.

    Args:
        device: where it is computed. processes: in how many processes.

    Example:
        >>> list(machine(torch.device("cpu")))
        ['threads', 'torch', 'device', 'processes']
    """
    return {
        "threads": str(torch.get_num_threads()), "torch": torch.__version__, "device": str(device),
        "processes": str(processes),
    }  # fmt: skip


def versions() -> dict[str, str]:
    """Returns the versions that the processes of one run have to share."""
    return {name: version(name) for name in ("torch", "diffusers", "transformers")} | {"adapter-studio": __version__}


def noted(before: Any, now: Mapping[str, str]) -> dict[str, list[str]]:
    """Returns what ``run.toml`` notes: all that a run went on with, the newest last.

    Args:
        before: what it notes already, as read from the file.
        now: of :func:`machine`.

    Example:
        >>> noted({"threads": ["1"]}, {"threads": "2"}), noted({}, {"threads": "2"})
        ({'threads': ['1', '2']}, {'threads': ['2']})
    """
    held = before if isinstance(before, Mapping) else {}
    result = {}
    for name, value in now.items():
        words = [str(word) for word in held.get(name, [])] if isinstance(held.get(name), list) else []
        result[name] = words if words and words[-1] == value else [*words, value]
    return result


def told(notes: Mapping[str, list[str]]) -> str | None:
    """Returns the sentence about what has changed in a run's life; None where nothing has.

    Example:
        >>> told({"threads": ["1", "2"], "torch": ["2.13.0"]})
        'this run was begun with 1 threads and went on with 2 threads, so the last bits of its adapter may differ ...'
        >>> told({"threads": ["1"]})
    """
    changed = {name: words for name, words in notes.items() if len(words) > 1}
    if not changed:
        return None
    begun, went = (
        ", ".join(WORDS.get(name, "{}").format(words[place]) for name, words in changed.items()) for place in (0, -1)
    )
    return (
        f"this run was begun with {begun} and went on with {went}, so the last bits of its adapter may differ from "
        "those of a run in one go"
    )
