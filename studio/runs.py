"""What marks a folder as that of a run, for all who walk over folders: what a run made is no data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

__all__ = ["RUN_ADAPTER", "RUN_FILE", "is_run"]

RUN_FILE: Final = "run.toml"
"""Every run's folder has it from before its first preview on."""

RUN_ADAPTER: Final = "adapter.safetensors"
"""The adapter that a finished run leaves in its folder."""


def is_run(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is that of a run, finished or not.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> is_run(folder), (folder / RUN_FILE).touch(), is_run(folder)
        (False, None, True)
    """
    return (Path(folder) / RUN_FILE).is_file()
