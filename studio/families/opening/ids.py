"""Hub ids: ``owner/name``, with a revision, a folder or a file where they are meant."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from studio.errors import UnknownName

__all__ = ["HubId", "hub_id", "standing"]

_FORM: Final = re.compile(
    r"(?P<repo>[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*)"
    r"(?:@(?P<revision>refs/(?:pr|convert)/[\w.-]+|[^/@\s]+))?(?:/(?P<inside>[^@]+?))?/?",
    re.ASCII,
)
_ADDRESS: Final = re.compile(r"(?:https?|hf)://", re.IGNORECASE)
# a name of two parts that ends like this is a path, and "models/dog.safetensors" is one that is not there
_FILES: Final = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf", ".json", ".yaml", ".toml", ".zip", ".onnx")


@dataclass(frozen=True)
class HubId:
    """What is meant of the hub.

    Args:
        repo: ``"owner/name"``.
        revision: a branch, a tag or a commit; None: the main one.
        inside: a folder or a file in it; "" is the whole repository.
    """

    repo: str
    revision: str | None = None
    inside: str = ""

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"{self.repo}{at}{'/' if self.inside else ''}{self.inside}"

    @property
    def is_file(self) -> bool:
        """Whether a file is named, not a repository or a folder."""
        return self.inside.lower().endswith(_FILES)


def hub_id(text: str) -> HubId | None:
    """Returns the hub id that a text is by its form, ``None`` for anything else; whether a path exists comes first.

    Raises:
        UnknownName: it is the address of a page; its id is what to give.

    Example:
        >>> hub_id("owner/name@v1/unet"), hub_id("owner/name/dog.safetensors").is_file
        (HubId(repo='owner/name', revision='v1', inside='unet'), True)
        >>> hub_id("./models/sdxl"), hub_id("models/dog.safetensors"), hub_id("emoji")
        (None, None, None)
    """
    if _ADDRESS.match(text):
        raise UnknownName(f"{text[:200]!r} is an address; give the hub id in it, owner/name")
    found = _FORM.fullmatch(text)
    if found is None or found["repo"].lower().endswith(_FILES) or ".." in found["repo"]:
        return None
    inside = found["inside"] or ""
    if inside and (inside != str(PurePosixPath(inside)) or ".." in PurePosixPath(inside).parts):
        return None
    return HubId(found["repo"], found["revision"], inside)


def standing(base: str | Path) -> Path | None:
    """Returns the path that was named, if there is something.

    Args:
        base: a path, or what may be none: an id, a name.

    Example:
        >>> standing("."), standing("owner/name"), standing("~nobody/here"), standing(9999 * "a")
        (PosixPath('.'), None, None, None)
    """
    try:
        path = Path(base).expanduser()
        path.stat()
    except (OSError, RuntimeError, ValueError):  # not there, no such user, a zero byte
        return None
    return path
