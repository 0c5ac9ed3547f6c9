"""A folder of two files: tensors, and a config beside them that says what they mean."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from studio.atomic import atomic_folder, atomic_write, together
from studio.files.header import write_tensors

__all__ = ["write_beside"]


def write_beside(
    folder: Path, config: tuple[str, Mapping[str, Any]], tensors: tuple[str, Mapping[str, Tensor]],
    metadata: Mapping[str, str],
) -> None:  # fmt: skip
    """Writes both files, or neither; other files of a folder that is there stay.

    Args:
        folder: where to. config: the name of its file, and its fields. tensors: the name of their file, and they
            themselves by key, of any shape ``(...)``. metadata: texts for the header of that file.

    Raises:
        BadFile: nothing can be written there. BadConfig: metadata that is not text, or a dtype that cannot be stored.
    """
    text = json.dumps(config[1], indent=2, sort_keys=True) + "\n"
    if folder.exists():
        with together():
            atomic_write(folder / config[0], text)
            write_tensors(folder / tensors[0], tensors[1], metadata)
    else:
        with atomic_folder(folder) as new:
            (new / config[0]).write_text(text, encoding="utf-8")
            write_tensors(new / tensors[0], tensors[1], metadata)
