"""What the header of a safetensors file says, checked before anything is believed; what the library refuses is refused.

Every limit (:mod:`studio.limits`) is tested before the work that it bounds is done.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch

from studio.errors import BadFile
from studio.given import parse_json
from studio.limits import limit, within

__all__ = ["DTYPES", "Header", "TensorInfo", "checked_header"]

# In the order in which tensors lie in a file.
DTYPES: Final[Mapping[str, torch.dtype]] = {
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F32": torch.float32,
    "U32": torch.uint32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_ITEMSIZE: Final = {word: dtype.itemsize for word, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What the header says about one tensor.

    Attributes:
        dtype: the container's word for it ("F32").
        shape: sizes, ``()`` for a single number.
        begin: first byte, counted from the end of the header. end: one past the last byte.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


_BEGINNINGS: Final = {
    b"PK": "it is a renamed .pt or .bin file",
    b"\x80\x02": "it is a renamed .pt or .bin file",
    b"GGUF": "it is a GGUF file of llama.cpp's, whose name has to end in .gguf",
}
_UNKNOWN: Final = "check what it is, or download it again"


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header.

    Attributes:
        tensors: name -> what is said about it, in the file's order.
        metadata: the texts that go with the file.
        start: where the tensors' bytes begin in the file.
    """

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    start: int


def checked_header(file: Path, stream: BinaryIO, size: int) -> Header:
    """Reads and checks the header of an opened file.

    Args:
        file: for messages. stream: the opened file. size: its bytes.

    Raises:
        BadFile: it is none, is truncated, goes beyond a limit, or says something that cannot be true.
    """
    length = _length(file, stream, size)
    head = _table(file, stream.read(length))
    metadata = head.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BadFile(f"{file} is damaged: its metadata holds something that is not text")
    longest, axes = limit("name-characters"), limit("tensor-axes")
    tensors: dict[str, TensorInfo] = {}
    for name, entry in head.items():
        if len(name) > longest:
            within("name-characters", len(name), f"{file}: {name[:60]!r}... has")
        tensors[name] = _info(file, name, entry, axes)
    _without_holes(file, tensors, size - 8 - length)
    return Header(tensors, metadata, 8 + length)


def _length(file: Path, stream: BinaryIO, size: int) -> int:
    """The bytes of the header, which the first eight say; the stream stands behind these then."""
    stream.seek(0)
    start = stream.read(8)
    if len(start) < 8:
        raise BadFile(f"{file} has {size} bytes, too few for a safetensors file; it is empty or truncated")
    (length,) = struct.unpack("<Q", start)
    if length > max(limit("header-bytes"), size - 8):
        advice = next((said for begins, said in _BEGINNINGS.items() if start.startswith(begins)), _UNKNOWN)
        raise BadFile(
            f"{file} is not a safetensors file: its first bytes would announce a header of {length:,} bytes, "
            f"and the whole file has {size:,}; {advice}"
        )
    if 8 + length > size:
        raise BadFile(
            f"{file} is truncated: its header should have {length:,} bytes and the whole file has {size:,}; "
            "download or copy it again"
        )
    within("header-bytes", length, f"{file} has")
    return int(length)


class _Wrong(Exception):
    """Something that JSON allows and the library does not."""


def _table(file: Path, data: bytes) -> dict[str, Any]:
    digits = limit("number-digits")

    def whole(text: str) -> int:
        if len(text) > digits:
            raise _Wrong(f"holds a number of {len(text):,} digits, and at most {digits} are taken")
        return int(text)

    try:
        head = parse_json(data.decode("utf-8"), pairs=_unique, whole=whole) if data[:1] == b"{" else None
    except _Wrong as error:
        raise BadFile(f"{file}: its header {error}; it was written wrongly and cannot be trusted") from None
    except UnicodeDecodeError:
        raise BadFile(f"{file} is not a safetensors file, or it is damaged: its header is not UTF-8") from None
    except ValueError as error:
        raise BadFile(f"{file} is not a safetensors file, or it is damaged: its header is not JSON ({error})") from None
    if not isinstance(head, dict):
        raise BadFile(f"{file} is damaged: its header is not a table of tensors")
    return head


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise _Wrong(f"names {twice[:200]!r} twice")
    return table


def _info(file: Path, name: str, entry: Any, axes: int) -> TensorInfo:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        size = _ITEMSIZE[dtype]
        if not isinstance(shape, list):
            raise ValueError
        if len(shape) > axes:
            within("tensor-axes", len(shape), f"{file}: {name!r} has")
        for number in (*shape, begin, end):
            if type(number) is not int or number < 0:
                raise ValueError
        if math.prod(shape) * size != end - begin or math.prod(max(1, side) for side in shape) >= 1 << 63:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise BadFile(
            f"{file} is damaged: what its header says about the tensor {name[:200]!r} cannot be true "
            f"({str(entry)[:200]!a}; known dtypes: {', '.join(DTYPES)})"
        ) from None
    return TensorInfo(dtype, tuple(shape), begin, end)


def _without_holes(file: Path, tensors: Mapping[str, TensorInfo], size: int) -> None:
    """Refuses tensors that overlap, leave holes, or reach beyond the file."""
    place = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != place:
            what = "overlaps the one before it" if info.begin < place else "leaves a hole before it"
            raise BadFile(f"{file} is damaged: the tensor {name!r} {what} (byte {info.begin:,}, expected {place:,})")
        place = info.end
    if place > size:
        raise BadFile(
            f"{file} is truncated: its tensors need {place:,} bytes and {size:,} are there; download or copy it again"
        )
    if place < size:
        raise BadFile(f"{file} is damaged: {size - place:,} bytes behind its tensors belong to nothing")
