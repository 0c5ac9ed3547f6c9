"""Files that are there completely or not at all: temporary file in the same folder, fsync, rename."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from functools import partial
from pathlib import Path

from studio.errors import BadFile, Taken
from studio.temporary import beside, held, locked, remove, remove_dead

__all__ = ["atomic_folder", "atomic_path", "atomic_write", "sentences", "together"]

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
def atomic_path(file: str | os.PathLike[str], *, fresh: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside ``file`` to write to, and renames it to ``file`` when the block ends well.

    The temporary file is there and empty; its name ends in ``.tmp``, so a writer that guesses a format from the name
    must be told the format. After an exception it is gone and ``file`` is what it was; what a killed process leaves of
    it goes when ``file`` is written the next time.

    Args:
        file: where the content shall be; missing parent folders are made.
        fresh: nothing may be there, not even what another process has written meanwhile.

    Raises:
        BadFile: nothing can be written there (no space, no permission, a folder in the way, ...).
        Taken: something is there, and ``fresh`` says that nothing may be.

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
        group = _GROUP.get()
        with contextlib.ExitStack() as own:
            temporary = (group or own).enter_context(held(file, partial(Path.touch, exist_ok=False)))
            yield temporary
            _sync(temporary)
            if group is not None:
                group.files.append((temporary, file))
                return
            (_put_new if fresh else Path.replace)(temporary, file)
            _sync(file.parent)
        remove_dead(file)


def _put_new(temporary: Path, file: Path) -> None:
    """Gives a temporary file its name unless something has it; of two processes one wins."""
    try:
        os.link(temporary, file)
    except FileExistsError:
        raise Taken(f"{file} is there already") from None
    except OSError:  # a file system without second names
        if os.path.lexists(file):
            raise Taken(f"{file} is there already") from None
        temporary.replace(file)


def _check_place(file: Path) -> None:
    """Checks that a file may stand there, or take the place of what does."""
    if file.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(file))
    if file.exists() and not file.is_file():
        raise BadFile(f"cannot write {file}: that is a device or a pipe, which a file would replace: name another")


class _Group(contextlib.ExitStack):
    """Files that are written and wait for the others; their temporary ones go when this ends."""

    def __init__(self) -> None:
        super().__init__()
        self.files: list[tuple[Path, Path]] = []


_GROUP: ContextVar[_Group | None] = ContextVar("files that are written together", default=None)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Lets the files that are written inside take their places when the block ends well: all of them, or none.

    A folder of several files is then never half new. A process that is killed in the moment of the renames, or a device
    that fails there and does not let them be taken back, can still leave some.

    Raises:
        BadFile: one cannot take its place; all are what they were.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with together():
        ...     atomic_write(folder / "one.txt", "1")
        ...     before = (folder / "one.txt").exists()
        ...     atomic_write(folder / "two.txt", "2")
        >>> before, sorted(file.name for file in folder.iterdir())
        (False, ['one.txt', 'two.txt'])
    """
    with _Group() as group:
        outer = _GROUP.set(group)
        try:
            yield
        finally:
            _GROUP.reset(outer)
        _replace_all(group.files)


def _replace_all(files: Sequence[tuple[Path, Path]]) -> None:
    """Lets temporary files take their places; if one cannot, the others give theirs back."""
    done: list[tuple[Path, Path | None]] = []
    try:
        for temporary, file in files:
            with sentences(file):
                done.append((file, _second_name(file)))
                temporary.replace(file)
                _sync(file.parent)
    except BaseException:
        for file, old in reversed(done):
            _put_back(file, old)
        raise
    for file, old in done:
        if old is not None:
            remove(old)
        remove_dead(file)


def _second_name(file: Path) -> Path | None:
    """Gives a file that is there a second name."""
    if not file.exists():
        return None
    name = beside(file)
    try:
        os.link(file, name)
    except OSError:  # a file system without such names
        shutil.copy2(file, name)
    return name


def _put_back(file: Path, old: Path | None) -> None:
    """Puts what a file was in its place again, as far as the device lets that be done."""
    with contextlib.suppress(OSError):
        if old is None:
            file.unlink(missing_ok=True)
            return
        try:
            old.replace(file)  # changes nothing where both are one
        except OSError:
            file.unlink()
            os.link(old, file)
        remove(old)


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
        with held(folder, Path.mkdir) as temporary:
            yield temporary
            for file in sorted(temporary.rglob("*")):
                _sync(file)
            _exchange(folder, temporary)
            _sync(folder.parent)
        remove_dead(folder)


def _exchange(folder: Path, new: Path) -> None:
    """Puts a new folder in the place of one that may be there; that one goes when the new one stands."""
    old = beside(folder)
    with locked(folder):  # or another writer of the same folder could take what it is called meanwhile for a leftover
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except BaseException:
            if old.exists() and not folder.exists():
                old.rename(folder)
            raise
        remove(old)


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
