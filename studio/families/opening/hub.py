"""The hub: what is named is looked for in its cache on this machine, and downloaded only where it is not there.

Nothing else in the studio asks the network, and nothing here asks it about a path that exists.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from studio.errors import BadFile, UnknownName, UsageError, nearest
from studio.families.opening.ids import HubId
from studio.families.opening.selection import Selection, inside, variant_of
from studio.given import read_given

__all__ = ["cached_ids", "fetch", "offline", "repository_of"]

_TRUE: Final = ("1", "ON", "YES", "TRUE")
_OFFLINE: Final = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def offline() -> bool:
    """Whether the environment says, or said when its library was imported, that the hub is not to be asked."""
    from huggingface_hub import constants

    return constants.is_offline_mode() or any(os.environ.get(name, "").upper() in _TRUE for name in _OFFLINE)


def fetch(asked: HubId, select: Selection, *, away: bool = False, listed: bool = False) -> Path:
    """Returns the folder or the file that a hub id means: from the cache where all of it is there, else downloaded.

    Args:
        asked: what is meant.
        select: which of its files are needed.
        listed: that depends on what else the repository holds, so what the cache has of it does not tell.
        away: the network is not to be asked; :func:`offline` says so too.

    Raises:
        UnknownName: there is no such repository or revision, or none in the cache where the network is not to be asked.
        BadFile: it holds nothing that can be used, is not given to you, or its download broke off.
    """
    whole = inside("" if asked.is_file else asked.inside, select)
    folder = _snapshot(asked)
    lacking: BadFile | None = None
    if folder is not None:
        try:
            _check_cached(asked, folder, whole, listed)
            return folder / asked.inside
        except BadFile as problem:  # a part of it was fetched for something else
            lacking = problem
    if away or offline():
        raise _not_here(asked, lacking)
    with _sentences(asked):
        return _download(asked, whole) / asked.inside


def cached_ids() -> list[str]:
    """Returns the ids of the models in the hub's cache on this machine."""
    folders = sorted(_cache().glob("models--*--*"))
    return [folder.name.removeprefix("models--").replace("--", "/", 1) for folder in folders]


def repository_of(path: Path) -> str | None:
    """Returns the name of the repository, without its owner, that a path in a hub's cache is the whole of.

    Example:
        >>> repository_of(Path("hub/models--owner--dog/snapshots/0a1b2c")), repository_of(Path("runs/dog"))
        ('dog', None)
    """
    place = path.parent.parent.name
    return place.rpartition("--")[2] if path.parent.name == "snapshots" and place.startswith("models--") else None


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _snapshot(asked: HubId) -> Path | None:
    """Returns the folder of a revision in the cache, if there is one."""
    place = _cache() / f"models--{asked.repo.replace('/', '--')}"
    revision = asked.revision or "main"
    try:
        commit = (place / "refs" / revision).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        commit = revision
    folder = place / "snapshots" / commit
    return folder if commit and "/" not in commit and folder.is_dir() else None


def _check_cached(asked: HubId, folder: Path, select: Selection, listed: bool) -> None:
    """Checks that all that is needed is in the cache.

    Raises:
        BadFile: it is not.
    """

    def read(name: str) -> bytes:
        return read_given(folder / name, "config-bytes")

    there, names = _files(folder), _list_of(asked)
    if listed and names is None:
        raise BadFile("is known in part only")
    needed = select(names if listed and names is not None else there, read)
    missing = set(needed) - set(there)
    if missing:
        raise BadFile(f"lacks {min(missing)}")
    if names is not None and variant_of(needed) and not variant_of(select(names, read)):
        raise BadFile("holds its fp16 variant alone, which --dtype fp16 takes")


def _list_of(asked: HubId) -> list[str] | None:
    """Returns the names of all files of a revision, where a download has noted them in the cache."""
    import huggingface_hub

    noted = getattr(huggingface_hub, "get_cached_repo_tree", None)  # younger than the oldest library that serves
    if noted is None:
        return None
    try:
        return [file.path for file in noted(asked.repo, revision=asked.revision)]
    except Exception:  # nothing is noted, or in another form
        return None


def _files(folder: Path) -> list[str]:
    """Returns the files of a snapshot; a link whose file was lost is none."""
    return [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]


def _download(asked: HubId, select: Selection) -> Path:
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    info: Any = HfApi().model_info(asked.repo, revision=asked.revision)

    def read(name: str) -> bytes:
        return read_given(Path(hf_hub_download(asked.repo, name, revision=info.sha)), "config-bytes")

    try:
        needed = select([file.rfilename for file in info.siblings or ()], read)
    except BadFile as problem:
        raise BadFile(f"{asked.repo} on the hub {problem}") from None
    patterns = [glob.escape(name) for name in needed]
    # the revision's name and not its commit, so that the cache knows what that name meant
    folder = Path(snapshot_download(asked.repo, revision=asked.revision, allow_patterns=patterns, **_bars()))
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing:
        raise BadFile(f"{asked}: {missing[0]} was not downloaded, though the hub lists it; try again")
    return folder


def _bars() -> dict[str, Any]:
    """No progress bars where the environment says so now; the hub's library looks when it is imported."""
    from huggingface_hub.utils import tqdm

    class Silent(tqdm):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings | {"disable": True})

    return {"tqdm_class": Silent} if os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS", "").upper() in _TRUE else {}


def _not_here(asked: HubId, lacking: BadFile | None) -> UsageError:
    """The refusal of what the cache does not have, where the network is not to be asked."""
    way = "leave out --offline and HF_HUB_OFFLINE to download it"
    if lacking is not None:
        return BadFile(f"{asked}: what is in the hub's cache {lacking}; {way}")
    return UnknownName(
        f"there is no file or folder {str(asked)!r}, and no {_named(asked)} in the hub's cache {_cache()}"
        f"{_close(asked)}; {way}"
    )


def _named(asked: HubId) -> str:
    return f"revision {asked.revision!r} of {asked.repo}" if asked.revision else f"repository {asked.repo}"


def _close(asked: HubId) -> str:
    known = [one for one in cached_ids() if one != asked.repo]
    return f"; did you mean {nearest(asked.repo, known, 1)[0]!r}, which is there?" if known else ""


@contextmanager
def _sentences(asked: HubId) -> Iterator[None]:
    """Makes a sentence of what goes wrong with the hub."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except HfHubHTTPError as problem:
        raise _answered(asked, problem) from problem
    except _library_errors() as problem:
        if getattr(problem, "errno", None) is not None:  # of this machine's disk: whoever calls says it
            raise
        raise _broken(asked, problem) from problem


def _library_errors() -> tuple[type[Exception], ...]:
    """What the hub's library raises: its HTTP client's errors, whichever client that is, and the system's."""
    from huggingface_hub.errors import HfHubHTTPError

    return OSError, *(cls for cls in HfHubHTTPError.__bases__ if issubclass(cls, Exception))


def _answered(asked: HubId, problem: Any) -> UsageError:
    """The sentence for an answer of the hub that is no file."""
    from huggingface_hub import constants
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError
    from huggingface_hub.errors import RevisionNotFoundError as NoRevision

    page, code = f"{constants.ENDPOINT}/{asked.repo}", problem.response.status_code
    login = "log in with 'hf auth login', or set HF_TOKEN"
    rows: list[tuple[bool, Callable[[str], UsageError], str]] = [
        (
            isinstance(problem, GatedRepoError) or code == 403, BadFile,
            f"the hub gives {asked.repo} only to those who have accepted its terms: do so at {page}, and {login}",
        ),
        (
            isinstance(problem, NoRevision), UnknownName,
            f"{asked.repo} has no revision {asked.revision!r}: give a branch, a tag or a commit that {page} lists",
        ),
        (
            isinstance(problem, (RepositoryNotFoundError,)) or code == 401, UnknownName,
            f"there is no file or folder {str(asked)!r}, and the hub shows no repository {asked.repo}{_close(asked)}; "
            f"if it is a private one, {login}",
        ),
        (isinstance(problem, EntryNotFoundError) or code == 404, BadFile, f"{asked} is not on the hub: look at {page}"),
    ]  # fmt: skip
    for holds, kind, sentence in rows:
        if holds:
            return kind(sentence)
    return BadFile(f"the hub answers {page} with HTTP {code}; try again later, or give a folder")


def _broken(asked: HubId, problem: Exception) -> UsageError:
    from huggingface_hub import constants

    first = (str(problem).strip().splitlines() or [repr(problem)])[0]
    if "Connect" in type(problem).__name__ or "Timeout" in type(problem).__name__:
        return BadFile(
            f"{asked} is not in the hub's cache, and {constants.ENDPOINT} cannot be reached ({first}); check the "
            "network, or give a folder"
        )
    return BadFile(f"the download of {asked} broke off ({first}); call again, and it goes on where it stopped")
