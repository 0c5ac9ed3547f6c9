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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from torch import Tensor

from studio.atomic import atomic_path
from studio.claims import DTYPES, Header, TensorInfo, checked_header
from studio.device import on_cpu
from studio.errors import BadConfig, BadFile
from studio.given import open_given

__all__ = [
    "DTYPES",
    "Header",
    "TensorInfo",
    "payload_hash",
    "read_header",
    "read_numbers",
    "read_tensors",
    "write_tensors",
]

_WORDS: Final = {dtype: word for word, dtype in DTYPES.items()}
_PLACE: Final = {word: place for place, word in enumerate(DTYPES)}


def read_header(file: Path) -> Header:
    """Reads and checks the header of a safetensors file; no tensor is read.

    Raises:
        BadFile: the file is missing, truncated, or says something about itself that cannot be true.
    """
    with _opened(file) as (stream, size):
        return checked_header(file, stream, size)


def read_numbers(file: Path) -> tuple[Header, dict[str, Tensor]]:
    """Reads the header of a safetensors file, and of its tensors those that are one number, such as an alpha.

    Raises:
        BadFile: as :func:`read_header`.
    """
    with _opened(file) as (stream, size), on_cpu():
        header = checked_header(file, stream, size)
        read: dict[str, Tensor] = {}
        for name, info in sorted(header.tensors.items(), key=lambda item: item[1].begin):
            if math.prod(info.shape) == 1:
                stream.seek(header.start + info.begin)
                data = bytearray(stream.read(info.end - info.begin))
                if len(data) < info.end - info.begin:
                    raise BadFile(f"{file} became shorter while it was read; is it still being written?")
                read[name] = torch.frombuffer(data, dtype=DTYPES[info.dtype]).reshape(info.shape)
    return header, read


def read_tensors(
    file: Path,
    check: Callable[[Header], None] | None = None,
    each: Callable[[memoryview], None] | None = None,
) -> tuple[Header, dict[str, Tensor]]:
    """Reads a safetensors file once.

    Args:
        file: the file.
        check: called with the header before any tensor is read, to refuse the file.
        each: called with the bytes of every tensor, in the file's order.

    Raises:
        BadFile: as :func:`read_header`, or what ``check`` raises.
    """
    read: dict[str, Tensor] = {}
    with _opened(file) as (stream, size), on_cpu():
        header = checked_header(file, stream, size)
        if check is not None:
            check(header)
        stream.seek(header.start)
        for name, info in sorted(header.tensors.items(), key=lambda item: item[1].begin):
            # of its own, and where torch puts tensors: kernels that begin elsewhere in memory round elsewhere
            data = torch.empty(info.end - info.begin, dtype=torch.uint8)
            part = data.numpy().data
            if part and stream.readinto(part) != len(part):  # type: ignore[attr-defined]
                raise BadFile(f"{file} became shorter while it was read; is it still being written?")
            if each is not None:
                each(part)
            read[name] = data.view(DTYPES[info.dtype]).view(info.shape)
    return header, {name: read[name] for name in header.tensors}


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
            self.stream = open_given(self.file)
            return self.stream, self.stream.seek(0, 2)
        except FileNotFoundError:
            raise BadFile(f"there is no file {self.file}; check the path") from None
        except BadFile as error:
            raise BadFile(f"{self.file} {error}; name a .safetensors file") from None
        except (OSError, ValueError) as error:
            raise BadFile(f"{self.file} cannot be read: {getattr(error, 'strerror', None) or error}") from error

    def __exit__(self, *error: object) -> None:
        self.stream.close()


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
