"""Where the studio keeps what is worth keeping over runs and can be made again."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_folder"]


def cache_folder(asked: str | None = None) -> Path:
    """Returns the folder for what is worth keeping over runs.

    Args:
        asked: the user's choice; None takes ``$STUDIO_CACHE``, or ``adapter-studio`` in the user's cache folder.
    """
    if asked:
        return Path(asked).expanduser()
    own = os.environ.get("STUDIO_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser() / "adapter-studio"
