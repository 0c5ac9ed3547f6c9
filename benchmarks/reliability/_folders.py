"""A folder of data: made, read, checked; what is found must be what was written, and all else is named."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.reliability._pictures import plain
from benchmarks.reliability._terminal import ran
from studio.datasets.captions import Encoding
from studio.datasets.folder import ImageFolder, scan_folder

__all__ = ["LINKS", "REFUSED", "Content", "Wanted", "looked_at", "places"]

Content = bytes | Callable[[Path], Any]
Wanted = Mapping[str, str | None]
"""Pictures that are to be used, each with its caption."""
REFUSED: Final[Wanted] = {"": None}
"""The folder must not be trained on as it is."""
DEEP: Final = 2500


def _link(leads: str) -> Callable[[Path], None]:
    return lambda file: file.symlink_to(file.name if leads == "itself" else leads)


LINKS: Final[dict[str, Callable[[Path], Any]]] = {
    "pipe": os.mkfifo, "zeros": _link("/dev/zero"), "dangling": _link("nowhere"), "loop": _link("itself"),
}  # fmt: skip


def looked_at(files: Mapping[str, Content], wanted: Wanted | None, place: Path, encoding: Encoding = "utf-8") -> str:
    """Makes a folder, reads it and has it checked; returns what is wrong with what was found.

    Args:
        files: path inside the folder to bytes, or to what makes the entry.
        wanted: what is to be used of it; None: anything, as long as nothing goes unsaid.
        place: where it is made. encoding: of its captions.
    """
    place.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        file = place / name
        file.parent.mkdir(parents=True, exist_ok=True)
        content(file) if callable(content) else file.write_bytes(content)
    found = scan_folder(place, encoding=encoding)
    words = ("check", place, "--caption-encoding", encoding)
    fault = _unsaid(found, list(files)) or ran(*words, speaks=False) or ran(*words, "--json", speaks=False)
    if fault or wanted is None:
        return fault
    if wanted is REFUSED:
        return "" if found.refused else f"it is taken: {[(item.file.name, item.caption) for item in found]}"
    got = {item.file.relative_to(place).as_posix(): item.caption for item in found}
    return "" if got == wanted and not found.refused else f"{got} is read, {found.refused} refused"


def _unsaid(found: ImageFolder, names: list[str]) -> str:
    """Says which files were neither used nor named."""
    told = {os.fspath(item.file.relative_to(found.folder)) for item in found}
    captioned = {name.rpartition(".")[0] for name in told} | told
    made = {name for name in names if (found.folder / name).is_dir()}
    told |= {os.fspath(entry.file.relative_to(found.folder)) for entry in (*found.skipped, *found.refused)}
    told |= {name.partition(":")[0] for name in told}
    for name in names:
        caption = name.lower().endswith((".txt", ".caption")) and name.rpartition(".")[0] in captioned
        below = any(name.startswith(f"{folder}/") for folder in told)
        if not (name in told or caption or below or name in made or name.endswith("metadata.jsonl")):
            return f"{name!a} is neither used nor named"
    return ""


def places() -> Iterator[tuple[str, Callable[[Path], str]]]:
    """What stands where a picture is looked for and is none: pipes, devices, links, folders, depths."""
    own: Wanted = {"a.png": None}
    for kind, make in {
        **LINKS,
        "socket": _socket,
        "link to /proc": _link("/proc"),
        "link to /dev": _link("/dev"),
    }.items():
        yield f"a {kind}", partial(looked_at, {"a.png": plain(), "b.png": make}, own)
    for kind, make in {"folder": Path.mkdir, "link upwards": _link(".."), "link to where it is": _link(".")}.items():
        yield f"a {kind}", partial(_inside, {"a.png": plain(), "more": make}, None if kind == "link upwards" else own)
    yield "a folder called like a picture", partial(looked_at, {"b.png/a.png": plain()}, {"b.png/a.png": None})
    twice: dict[str, Content] = {"a.png": plain(), "b.png": _link("a.png")}
    yield "a link to a picture", partial(looked_at, twice, {"a.png": None, "b.png": None})
    deep = "d/" * 300
    files: dict[str, Content] = {f"{deep}a.png": plain(), f"{deep}a.txt": b"dog"}
    yield "300 folders deep", partial(looked_at, files, {f"{deep}a.png": "dog"})
    yield "deeper than a path", _deeper
    whole = {"a file": b"x", "empty": {}, "a run": {"run.toml": b""}, "hidden alone": {".a.png": b"x"}}
    for name, content in whole.items():
        yield f"the folder is {name}", partial(_no_folder, content)
    yield "nothing of it can be used", partial(looked_at, {"a.png": b"x", "b.txt": b"y"}, {})


def _inside(files: Mapping[str, Content], wanted: Wanted | None, place: Path) -> str:
    return looked_at(files, wanted, place / "inside")  # what leads upwards finds nothing else


def _no_folder(content: Any, place: Path) -> str:
    if isinstance(content, bytes):
        place.write_bytes(content)
    else:
        place.mkdir()
        for name, data in content.items():
            (place / name).write_bytes(data)
    words = ("--instance-prompt", "a photo of sks dog", "-o", place.with_name("run"))
    return ran("check", place, codes=(2,), speaks=False) or ran("dreambooth", "emoji", place, *words, codes=(2,))


def _deeper(place: Path) -> str:
    """A path that is longer than the system opens."""
    place.mkdir(parents=True)
    opened = [os.open(place, os.O_RDONLY)]
    try:
        for _ in range(DEEP):
            os.mkdir("d", dir_fd=opened[-1])
            opened.append(os.open("d", os.O_RDONLY, dir_fd=opened[-1]))
            if len(opened) > 2:
                os.close(opened.pop(0))
        return looked_at({"a.png": plain()}, {"a.png": None}, place)
    finally:
        for _ in range(DEEP):  # nothing that removes folders goes as deep
            opened.append(os.open("..", os.O_RDONLY, dir_fd=opened[-1]))
            os.rmdir("d", dir_fd=opened[-1])
            os.close(opened.pop(0))
        for one in opened:
            os.close(one)


def _socket(file: Path) -> None:
    before = Path.cwd()
    os.chdir(file.parent)  # an address is at most 108 bytes long
    try:
        socket.socket(socket.AF_UNIX).bind(file.name)
    finally:
        os.chdir(before)
