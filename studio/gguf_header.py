"""What the header of a GGUF file says, llama.cpp's container, checked before anything is believed.

A file is ``GGUF``, the version, the numbers of tensors and of entries, the entries (key, type, value), what is said of
each tensor (name, axes, type, offset), padding, and the tensors' bytes. Its axes run the other way round: the first is
the one whose numbers lie beside each other.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, TypeAlias

from studio.errors import BadFile
from studio.limits import limit, within

__all__ = ["ALIGNMENT", "MAGIC", "VERSION", "GgufHeader", "GgufTensor", "Value", "checked_gguf"]

MAGIC: Final = b"GGUF"
VERSION: Final = 3
ALIGNMENT: Final = 32
"""What a tensor's offset is a multiple of, where the file says nothing else."""
Value: TypeAlias = str | int | float | bool | None
"""Of an entry; None for a list, which is passed over."""

_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
_AXES: Final = 4  # ggml's own limit
_BLOCKS: Final = {0: (1, 4), 1: (1, 2), 8: (32, 34), 28: (1, 8), 30: (1, 2)}
"""Types of tensors whose size is known here (F32, F16, Q8_0, F64, BF16): numbers of a block, and its bytes."""


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """What the header says about one tensor.

    Attributes:
        type: ggml's number of its type. shape: sizes, in torch's order.
        begin: first byte in the file. size: its bytes; None for a type whose size is not known here.
    """

    type: int
    shape: tuple[int, ...]
    begin: int
    size: int | None


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """A checked header.

    Attributes:
        entries: key -> value. tensors: name -> what is said about it, in the file's order.
    """

    entries: dict[str, Value]
    tensors: dict[str, GgufTensor]


def checked_gguf(file: Path, stream: BinaryIO, size: int) -> GgufHeader:
    """Reads and checks the header of an opened file.

    Args:
        file: for messages. stream: the opened file. size: its bytes.

    Raises:
        BadFile: it is none, is truncated, goes beyond a limit, or says something that cannot be true.
    """
    stream.seek(0)
    cursor = _Cursor(file, stream.read(limit("header-bytes")), size)
    if cursor.take(4) != MAGIC:
        raise BadFile(f"{file} is no whole GGUF file: it does not begin with {MAGIC.decode()}")
    version = cursor.number("I")
    if version not in (2, VERSION):
        raise BadFile(f"{file} is a GGUF file of the version {version}, and 2 and {VERSION} are read; write it anew")
    tensors, entries = cursor.number("Q"), cursor.number("Q")
    found: dict[str, Value] = {}
    for _ in range(cursor.room(entries, 13, "entries")):
        key = cursor.name("entry", found)
        found[key] = cursor.value(cursor.number("I"))
    said = [cursor.tensor() for _ in range(cursor.room(tensors, 32, "tensors"))]
    if len(dict(said)) < len(said):
        raise BadFile(f"{file} is damaged: it names a tensor twice")
    start = cursor.aligned(found.get("general.alignment", ALIGNMENT))
    placed = {name: _placed(file, name, one, start) for name, one in said}
    _check_extents(file, placed, size)
    return GgufHeader(found, placed)


class _Cursor:
    """The place in a header up to which it is read."""

    def __init__(self, file: Path, data: bytes, size: int) -> None:
        self._file, self._data, self._size, self._place = file, data, size, 0

    def take(self, count: int) -> bytes:
        """The next bytes."""
        end = self._place + count
        if end > self._size:
            raise BadFile(
                f"{self._file} is truncated: its header goes on behind its {self._size:,} bytes; download or copy it "
                "again"
            )
        if end > len(self._data):
            within("header-bytes", end, f"{self._file} has")
        part = self._data[self._place : end]
        self._place = end
        return part

    def number(self, form: str) -> int:
        """The next number, in :mod:`struct`'s letter."""
        return int(struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))[0])

    def room(self, count: int, least: int, what: str) -> int:
        """A number of things to come, which take so many bytes each at least."""
        if count * least > self._size - self._place:
            raise BadFile(f"{self._file} is damaged or truncated: it announces {count:,} {what}, and has no room left")
        return count

    def text(self) -> str:
        """The next text."""
        try:
            return self.take(self.room(self.number("Q"), 1, "characters")).decode("utf-8")
        except UnicodeDecodeError:
            raise BadFile(f"{self._file} is damaged: a text in its header is not UTF-8") from None

    def name(self, what: str, taken: dict[str, Value]) -> str:
        """The next name, which nothing else may have."""
        name = self.text()
        if len(name) > limit("name-characters"):
            within("name-characters", len(name), f"{self._file}: the {what} {name[:60]!r}... has")
        if name in taken:
            raise BadFile(f"{self._file} is damaged: it names the {what} {name[:200]!r} twice")
        return name

    def value(self, kind: int) -> Value:
        """The value of an entry; a list is passed over."""
        if kind == _TEXT:
            return self.text()
        if kind == _LIST:
            self._pass_list(self.number("I"))
            return None
        form = self._form(kind)
        value: Value = struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))[0]
        return value

    def _form(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise BadFile(f"{self._file} is damaged: an entry of its header is of the type {kind}, which there is not")
        return _SCALARS[kind]

    def _pass_list(self, kind: int) -> None:
        count = self.number("Q")
        if kind == _TEXT:
            for _ in range(self.room(count, 8, "texts")):
                self.take(self.room(self.number("Q"), 1, "characters"))
            return
        size = struct.calcsize(f"<{self._form(kind)}")
        self.take(self.room(count, size, "numbers") * size)

    def tensor(self) -> tuple[str, tuple[int, tuple[int, ...], int]]:
        """What is said of the next tensor: its name, and its type, shape and offset."""
        name = self.name("tensor", {})
        axes = self.number("I")
        if axes > _AXES:
            raise BadFile(f"{self._file} is damaged: the tensor {name[:200]!r} has {axes:,} axes")
        sizes = tuple(self.number("Q") for _ in range(axes))
        kind, offset = self.number("I"), self.number("Q")
        if math.prod(max(1, one) for one in sizes) >= 1 << 60:
            raise BadFile(f"{self._file} is damaged: the tensor {name[:200]!r} cannot have the shape {sizes}")
        return name, (kind, sizes[::-1], offset)

    def aligned(self, step: Value) -> int:
        """Where the tensors begin."""
        if not isinstance(step, int) or isinstance(step, bool) or not 1 <= step <= 1 << 20 or step & (step - 1):
            raise BadFile(f"{self._file} is damaged: its tensors cannot be aligned to {step!r} bytes")
        return self._place + -self._place % step


def _placed(file: Path, name: str, said: tuple[int, tuple[int, ...], int], start: int) -> GgufTensor:
    kind, shape, offset = said
    if kind not in _BLOCKS:
        return GgufTensor(kind, shape, start + offset, None)
    numbers, size = _BLOCKS[kind]
    if (shape[-1] if shape else 1) % numbers:
        raise BadFile(f"{file} is damaged: rows of the tensor {name[:200]!r} are no whole blocks of {numbers}")
    return GgufTensor(kind, shape, start + offset, math.prod(shape) // numbers * size)


def _check_extents(file: Path, tensors: dict[str, GgufTensor], size: int) -> None:
    """Refuses tensors that overlap, or reach beyond the file."""
    end = 0
    for name, one in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].size or 0)):
        if one.begin < end:
            raise BadFile(f"{file} is damaged: the tensor {name[:200]!r} overlaps the one before it")
        end = one.begin + (one.size or 0)
        if end > size:
            raise BadFile(
                f"{file} is truncated: its tensors reach to byte {end:,}, and it has {size:,}; download or copy it "
                "again"
            )
