"""What an adapter is called that nobody named, and which file is meant by the folder of a run."""

from __future__ import annotations

import re
from collections.abc import Container
from pathlib import Path
from typing import Final

from studio.errors import BadFile
from studio.given import given_path
from studio.runs import RUN_ADAPTER, is_run

__all__ = ["SILENT", "adapter_file", "free_name", "plain_name"]

SILENT: Final = ("adapter", "adapter_model", "pytorch_lora_weights")
"""Names of files that say nothing about what is in them."""


def adapter_file(file: str | Path) -> Path:
    """Returns the file or PEFT folder that is meant: of a run's folder, the adapter in it.

    Raises:
        BadFile: the run has no adapter yet.
    """
    file = given_path(file)
    if not is_run(file) or (file / RUN_ADAPTER).is_file():
        return file / RUN_ADAPTER if is_run(file) else file
    checkpoints = sorted((file / "checkpoints").glob("*.safetensors"))
    hint = f", or take its newest checkpoint, {checkpoints[-1]}" if checkpoints else ""
    raise BadFile(f"the run {file} is not finished, so it has no {RUN_ADAPTER} yet: let it go on{hint}")


def plain_name(text: str) -> str:
    """Returns a text with the characters alone that an adapter's name may have.

    Example:
        >>> plain_name("my.dog v2"), plain_name("…")
        ('my-dog-v2', '')
    """
    return re.sub(r"[^\w-]+", "-", text, flags=re.ASCII).strip("-")


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
    called = plain_name(file.stem if file.suffix in (".safetensors", ".pt", ".bin") else file.name)
    if called in SILENT or not called:
        called = plain_name(file.absolute().parent.name)
    first = recorded or called or "default"
    for name in (first, called):
        if name and name not in taken:
            return name
    number = 2
    while f"{first}-{number}" in taken:
        number += 1
    return f"{first}-{number}"
