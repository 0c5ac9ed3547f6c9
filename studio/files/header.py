"""The safetensors container: a header that is checked before anything is believed, and a writer that repeats itself.

A file is ``u64`` header length N, N bytes of JSON, then the tensors' bytes. The library's own writer orders metadata
at random, so two saves of the same tensors differ; the writer here sorts it, and otherwise keeps the library's layout:
``__metadata__`` first, tensors by dtype and then by name, no holes, the header padded with spaces to 8 bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from torch import Tensor

from studio.atomic import atomic_path
from studio.errors import BadConfig, BadFile

__all__ = ["DTYPES", "Header", "TensorInfo", "payload_hash", "read_header", "read_tensors", "write_tensors"]

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
_WORDS: Final = {dtype: word for word, dtype in DTYPES.items()}
_PLACE: Final = {word: place for place, word in enumerate(DTYPES)}
_ITEMSIZE: Final = {word: dtype.itemsize for word, dtype in DTYPES.items()}
_LONGEST_HEADER: Final = 100_000_000


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


def read_header(file: Path) -> Header:
    """Reads and checks the header of a safetensors file; no tensor is read.

    Raises:
        BadFile: the file is missing, truncated, or says something about itself that cannot be true.
    """
    with _opened(file) as (stream, size):
        return _header(file, stream, size)


def read_tensors(file: Path) -> tuple[Header, dict[str, Tensor]]:
    """Reads a safetensors file once.

    The tensors are views of one buffer: whoever keeps some of them for long copies those.

    Raises:
        BadFile: as :func:`read_header`.
    """
    with _opened(file) as (stream, size):
        header = _header(file, stream, size)
        buffer = bytearray(size - header.start)
        if stream.readinto(buffer) != len(buffer):  # type: ignore[attr-defined]
            raise BadFile(f"{file} became shorter while it was read; is it still being written?")
    return header, dict(_views(header, buffer))


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file: all of it or nothing, and the same bytes for the same content.

    Raises:
        BadFile: nothing can be written there.
        BadConfig: metadata that is not text, or a dtype that the container does not have.
    """
    ordered = _ordered(tensors)
    head: dict[str, Any] = {}
    if metadata:
        head["__metadata__"] = _texts(metadata)
    offset = 0
    for name, tensor in ordered:
        size = tensor.numel() * tensor.element_size()
        head[name] = {
            "dtype": _WORDS[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with atomic_path(file) as temporary, temporary.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        for _, tensor in ordered:
            stream.write(_bytes(tensor))


def payload_hash(tensors: Mapping[str, Tensor]) -> str:
    """Returns the SHA-256 of the bytes behind the header, which other tools call the model hash.

    It is the same before and after a change of metadata.
    """
    digest = hashlib.sha256()
    for _, tensor in _ordered(tensors):
        digest.update(_bytes(tensor))
    return digest.hexdigest()


class _opened:
    """Opens a file to read and says how long it is; whatever the system objects becomes a sentence."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __enter__(self) -> tuple[BinaryIO, int]:
        try:
            self.stream = self.file.open("rb")
            return self.stream, self.stream.seek(0, 2)
        except FileNotFoundError:
            raise BadFile(f"there is no file {self.file}; check the path") from None
        except IsADirectoryError:
            raise BadFile(f"{self.file} is a folder, a file was expected; name the .safetensors file in it") from None
        except OSError as error:
            raise BadFile(f"{self.file} cannot be read: {error.strerror}") from error

    def __exit__(self, *error: object) -> None:
        self.stream.close()


def _header(file: Path, stream: BinaryIO, size: int) -> Header:
    length = _length(file, stream, size)
    try:
        head = json.loads(stream.read(length), object_pairs_hook=_unique)
    except _Twice as error:
        raise BadFile(f"{file}: its header names {error} twice; it was written wrongly and cannot be trusted") from None
    except (ValueError, RecursionError):
        raise BadFile(f"{file} is not a safetensors file, or it is damaged: its header is not JSON") from None
    if not isinstance(head, dict):
        raise BadFile(f"{file} is damaged: its header is not a table of tensors")
    metadata = head.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise BadFile(f"{file} is damaged: its metadata holds something that is not text")
    tensors = {name: _info(file, name, entry) for name, entry in head.items()}
    _without_holes(file, tensors, size - 8 - length)
    return Header(tensors, metadata, 8 + length)


def _length(file: Path, stream: BinaryIO, size: int) -> int:
    """The bytes of the header, which the first eight say; the stream stands behind these then."""
    stream.seek(0)
    start = stream.read(8)
    if len(start) < 8:
        raise BadFile(f"{file} has {size} bytes, too few for a safetensors file; it is empty or truncated")
    (length,) = struct.unpack("<Q", start)
    if length > _LONGEST_HEADER:
        pickled = start[:2] in (b"PK", b"\x80\x02")
        advice = "it is a renamed .pt or .bin file" if pickled else "check what it is, or download it again"
        raise BadFile(
            f"{file} is not a safetensors file: its first bytes would announce a header of {length:,} bytes "
            f"(at most {_LONGEST_HEADER:,} are allowed); {advice}"
        )
    if 8 + length > size:
        raise BadFile(
            f"{file} is truncated: its header should have {length:,} bytes and the whole file has {size:,}; "
            "download or copy it again"
        )
    return int(length)


class _Twice(Exception):
    """A name that stands twice in one table."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(repr(next(name for name in names if names.count(name) > 1)))
    return table


def _info(file: Path, name: str, entry: Any) -> TensorInfo:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        size = _ITEMSIZE[dtype]
        for number in (*shape, begin, end):
            if type(number) is not int or number < 0:
                raise ValueError
        if math.prod(shape) * size != end - begin:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise BadFile(
            f"{file} is damaged: what its header says about the tensor {name[:200]!r} cannot be true "
            f"({str(entry)[:200]}; known dtypes: {', '.join(DTYPES)})"
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


ALIGNMENT: Final = 64
"""Where torch puts a tensor of its own, in bytes. A file packs them tighter, and kernels that begin elsewhere round
elsewhere: what was loaded would not compute the same bits as what was saved."""


def _views(header: Header, buffer: bytearray) -> Iterator[tuple[str, Tensor]]:
    whole = torch.frombuffer(buffer, dtype=torch.uint8) if buffer else torch.empty(0, dtype=torch.uint8)
    for name, info in header.tensors.items():
        dtype = DTYPES[info.dtype]
        part = whole[info.begin : info.end]
        if part.data_ptr() % ALIGNMENT:
            part = part.clone()
        yield name, part.view(dtype).view(info.shape)


def _ordered(tensors: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        if tensor.dtype not in _WORDS:
            raise BadConfig(
                f"a safetensors file cannot hold the {tensor.dtype} of the tensor {name!r}; give another dtype"
            )
    return sorted(tensors.items(), key=lambda item: (_PLACE[_WORDS[item[1].dtype]], item[0].encode()))


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _texts(metadata: Mapping[str, str]) -> dict[str, str]:
    for name, value in metadata.items():
        if not isinstance(value, str):
            raise BadConfig(f"metadata[{name!r}] is {value!r}, and a file holds texts only: give it as a string")
    return {name: metadata[name] for name in sorted(metadata)}
