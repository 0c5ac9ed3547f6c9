"""What an adapter is called that nobody named, and which file is meant by the folder of a run."""

from __future__ import annotations

import re
from collections.abc import Container
from functools import partial
from pathlib import Path
from typing import Final

from studio.errors import BadFile
from studio.families.opening import hub
from studio.families.opening.ids import HubId, hub_id
from studio.families.opening.selection import USUAL_ADAPTER, Selection, adapter_files, one_file
from studio.given import given_path
from studio.runs import RUN_ADAPTER, is_run

__all__ = ["SILENT", "adapter_file", "free_name", "plain_name"]

SILENT: Final = ("adapter", "adapter_model", "pytorch_lora_weights")
"""Names of files that say nothing about what is in them."""


def adapter_file(file: str | Path, *, offline: bool = False) -> Path:
    """Returns the file or PEFT folder that is meant: of a run's folder or a repository of the hub, the adapter in it.

    Args:
        file: a path, or a hub id: ``"owner/name"``, ``"owner/name@revision"``, with a folder or a file behind it. A
            path that exists is never asked of the hub, and the hub only for what its cache does not have.
        offline: never ask the hub; ``HF_HUB_OFFLINE=1`` says so too.

    Raises:
        BadFile: the run has no adapter yet, or what the hub has under that id is not one adapter.
        UnknownName: the hub has no such repository or revision, or its cache has none and it is not to be asked.
    """
    file = given_path(file)
    asked = None if _stands(file) else hub_id(str(file))
    if asked is not None:
        return _fetched(asked, offline)
    file = file.expanduser()
    if not is_run(file) or (file / RUN_ADAPTER).is_file():
        return file / RUN_ADAPTER if is_run(file) else file
    checkpoints = sorted((file / "checkpoints").glob("*.safetensors"))
    hint = f", or take its newest checkpoint, {checkpoints[-1]}" if checkpoints else ""
    raise BadFile(f"the run {file} is not finished, so it has no {RUN_ADAPTER} yet: let it go on{hint}")


def _stands(file: str | Path) -> bool:
    try:
        return Path(file).expanduser().exists()
    except (OSError, RuntimeError, ValueError):  # too long a name, no such user, a zero byte
        return True  # whoever reads it says so


def _fetched(asked: HubId, offline: bool) -> Path:
    """Returns the adapter of a repository: PEFT's folder, or its safetensors file."""
    select: Selection = partial(one_file, name=asked.inside) if asked.is_file else adapter_files
    found = hub.fetch(asked, select, away=offline, listed=not asked.is_file)
    if asked.is_file or (found / "adapter_config.json").is_file():
        return found
    usual = found / USUAL_ADAPTER
    return usual if usual.is_file() else next(found.glob("*.safetensors"))


def plain_name(text: str) -> str:
    """Returns a text with the characters alone that an adapter's name may have.

    Example:
        >>> plain_name("my.dog v2"), plain_name("…")
        ('my-dog-v2', '')
    """
    return re.sub(r"[^\w-]+", "-", text, flags=re.ASCII).strip("-")


def _folder_name(folder: Path) -> str:
    """The name of a folder; in the hub's cache, where it is a commit, that of the repository."""
    return hub.repository_of(folder) or folder.name


def free_name(file: Path, recorded: str, taken: Container[str]) -> str:
    """Returns what an adapter is called: what its file records, else what the file is called, else with a number.

    Args:
        file: where it is.
        recorded: the name in the file, or "".
        taken: names of adapters that are there already.

    Example:
        >>> free_name(Path("runs/b/adapter.safetensors"), "robot", []), free_name(Path("dog.v2.safetensors"), "", [])
        ('robot', 'dog-v2')
        >>> taken = ["robot", "b"]
        >>> free_name(Path("runs/b/adapter.safetensors"), "robot", taken[:1])
        'b'
        >>> free_name(Path("runs/b/adapter.safetensors"), "robot", taken)
        'robot-2'
    """
    called = plain_name(file.stem if file.suffix in (".safetensors", ".pt", ".bin") else _folder_name(file))
    if called in SILENT or not called:
        called = plain_name(_folder_name(file.absolute().parent))
    first = recorded or called or "default"
    for name in (first, called):
        if name and name not in taken:
            return name
    number = 2
    while f"{first}-{number}" in taken:
        number += 1
    return f"{first}-{number}"
