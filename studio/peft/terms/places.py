"""Where an adapter's files are: a local folder, or the Hub for a name that is no path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from studio.errors import BadFile

__all__ = ["folder_of"]


class NoFolder(BadFile, ValueError):
    """A folder without an adapter in it."""


def folder_of(name: str | Path, subfolder: str | None, files: Sequence[str], **hub: Any) -> Path:
    """Returns the folder that holds one of ``files``.

    A local path never asks the network.

    Args:
        name: a folder, or a name on the Hub. subfolder: a folder in it. files: the first that is there counts.
        hub: revision, cache_dir, token.

    Raises:
        BadFile: there is none of them.
    """
    folder = Path(name, subfolder) if subfolder else Path(name)
    if folder.is_dir():
        if any((folder / file).is_file() for file in files):
            return folder
        inside = sorted(one.name for one in folder.iterdir() if any((one / file).is_file() for file in files))
        hint = f"; it is in {', '.join(str(folder / one) for one in inside)}" if inside else ""
        raise NoFolder(f"Can't find '{files[0]}' at '{folder}'{hint}")
    if Path(name).exists() or Path(name).is_absolute() or str(name).startswith(".") or str(name).count("/") != 1:
        raise NoFolder(f"Can't find '{files[0]}' at '{folder}': there is no such folder")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    for file in files:
        try:
            found = hf_hub_download(str(name), file, subfolder=subfolder, **hub)
        except LocalEntryNotFoundError as error:
            raise NoFolder(f"Can't find '{file}' at '{name}': no such folder, and the Hub was not reached") from error
        except (EntryNotFoundError, HfHubHTTPError):
            continue
        return Path(found).parent
    raise NoFolder(f"Can't find '{files[0]}' at '{name}': there is no such folder, and the Hub has none")
