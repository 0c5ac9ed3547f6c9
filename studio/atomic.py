"""Files that are there completely or not at all: temporary file in the same folder, fsync, rename."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from studio.errors import BadFile

__all__ = ["atomic_folder", "atomic_path", "atomic_write", "remove_leftovers", "sentences"]

_TEMPORARY: Final = re.compile(r"\..{1,100}\.[0-9a-f]{8}\.tmp", re.DOTALL)

_REASONS = {
    errno.ENOSPC: "no space left on the device: free some, or choose another folder",
    errno.EDQUOT: "no space left in your quota: free some, or choose another folder",
    errno.EFBIG: "the file would be larger than the system allows: choose another folder",
    errno.EACCES: "the folder is not writable for you: change its permissions, or choose another",
    errno.EPERM: "the folder is not writable for you: change its permissions, or choose another",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.ENOENT: "the folder does not exist and cannot be made: choose another",
    errno.ENOTDIR: "a part of that path is a file, not a folder: choose another path",
    errno.EEXIST: "a part of that path is a file, not a folder: choose another path",
    errno.EISDIR: "that is a folder: name a file",
    errno.ENAMETOOLONG: "the name is too long for the file system: choose a shorter one",
    errno.EIO: "the device reports an input/output error: choose another one",
}


@contextlib.contextmanager
def atomic_path(file: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside ``file`` to write to, and renames it to ``file`` when the block ends well.

    The block creates the temporary file itself; its name ends in ``.tmp``, so a writer that guesses a format from the
    name must be told the format. After an exception the temporary file is gone and ``file`` is what it was.

    Args:
        file: where the content shall be; missing parent folders are made.

    Raises:
        BadFile: nothing can be written there (no space, no permission, a folder in the way, ...).

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "new" / "note.txt"
        >>> with atomic_path(target) as temporary:
        ...     _ = temporary.write_text("all of it")
        >>> target.read_text(), [file.name for file in target.parent.iterdir()]
        ('all of it', ['note.txt'])
    """
    file = Path(file).expanduser()
    with sentences(file):
        _check_place(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(file)
        try:
            yield temporary
            _sync(temporary)
            temporary.replace(file)
            _sync(file.parent)
        finally:
            temporary.unlink(missing_ok=True)


def _check_place(file: Path) -> None:
    """Checks that a file may stand there, or take the place of what does."""
    if file.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(file))
    if file.exists() and not file.is_file():
        raise BadFile(f"cannot write {file}: that is a device or a pipe, which a file would replace: name another")


def atomic_write(file: str | os.PathLike[str], data: bytes | str) -> None:
    """Writes ``data`` (text as UTF-8, without newline translation) to ``file``: all of it, or nothing.

    Raises:
        BadFile: as :func:`atomic_path`.
    """
    with atomic_path(file) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def atomic_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a new, empty temporary folder beside ``folder`` that takes its place when the block ends well.

    A folder that stands there already is replaced as a whole. The replacement is two renames, so a crash between them
    leaves the old folder under its ``.tmp`` name, and never a mixture.

    Raises:
        BadFile: as :func:`atomic_path`.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "adapter"
        >>> with atomic_folder(target) as temporary:
        ...     _ = (temporary / "config.json").write_text("{}")
        >>> [file.name for file in target.iterdir()]
        ['config.json']
    """
    folder = Path(folder).expanduser()
    with sentences(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary, old = _beside(folder), _beside(folder)
        try:
            temporary.mkdir()
            yield temporary
            for file in sorted(temporary.rglob("*")):
                _sync(file)
            if folder.exists():
                folder.rename(old)
            try:
                temporary.rename(folder)
            except OSError:
                if old.exists():
                    old.rename(folder)
                raise
            _sync(folder.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            if folder.exists():
                shutil.rmtree(old, ignore_errors=True)


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Removes the temporary files that killed writers left in a folder (not in those below it).

    Args:
        folder: held by the caller, so that no living writer has a temporary file in it; it need not be there.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / ".dog.png.0123abcd.tmp").touch(), (folder / ".mine.tmp").touch()
        (None, None)
        >>> remove_leftovers(folder)
        >>> [file.name for file in folder.iterdir()]
        ['.mine.tmp']
    """
    folder = Path(folder)
    for file in list(folder.iterdir()) if folder.is_dir() else ():
        if not _TEMPORARY.fullmatch(file.name):
            continue
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):  # it stays, and does no harm
                file.unlink()


def _beside(file: Path) -> Path:
    # a name has so many bytes at most, not characters
    start = os.fsencode(file.name)[:100].decode(errors="ignore")
    return file.with_name(f".{start}.{secrets.token_hex(4)}.tmp")


def _sync(path: Path) -> None:
    """Asks the system to put ``path`` (a file, or a folder's list of names) on the device."""
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open folders
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # some network and overlay file systems cannot sync folders; the rename itself is still whole
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def sentences(file: Path) -> Iterator[None]:
    """Turns what the system says about writing ``file``, or a folder above it, into a sentence.

    Raises:
        BadFile: it cannot be written there, for a reason that the user can mend.
    """
    try:
        yield
    except OSError as error:
        reason = _REASONS.get(error.errno or 0)
        if error.errno in (errno.EEXIST, errno.ENOTDIR):
            reason = _dangling(file) or reason
        ours = (
            error.filename is None
            or Path(os.fsdecode(error.filename)).is_relative_to(file.parent)
            or (Path(os.fsdecode(error.filename)) in file.parents)
        )
        if reason is None or not ours:
            raise
        raise BadFile(f"cannot write {file}: {reason}") from error


def _dangling(file: Path) -> str | None:
    """Says which part of a path is a link to nothing."""
    place = next((place for place in (file, *file.parents) if place.is_symlink() and not place.exists()), None)
    return None if place is None else f"{place} is a link to {place.readlink()}, which is not there: make that first"
