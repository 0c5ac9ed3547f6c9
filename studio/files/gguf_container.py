"""llama.cpp's container: an adapter file opened without its program, and written so that it repeats itself."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, Final

import torch
from torch import Tensor

from studio.atomic import atomic_path
from studio.device import on_cpu
from studio.errors import BadConfig, BadFile
from studio.files.format import Source
from studio.files.header import TensorInfo
from studio.gguf_header import ALIGNMENT, MAGIC, VERSION, GgufHeader, GgufTensor, Value, checked_gguf
from studio.given import open_given

__all__ = ["SUFFIX", "open_gguf", "write_gguf"]

SUFFIX: Final = ".gguf"
_TYPES: Final = {0: ("F32", torch.float32), 1: ("F16", torch.float16), 28: ("F64", torch.float64),
                 30: ("BF16", torch.bfloat16)}  # fmt: skip
"""ggml's types that are stored as they are."""
_NUMBERS: Final = {dtype: number for number, (_, dtype) in _TYPES.items()}
_Q8: Final = 8
_BLOCK: Final = 32  # numbers of a block of Q8_0, behind a scale in fp16
_TEXT, _FLOAT = 8, 6  # types of entries


def open_gguf(
    named: Path, file: Path, *, tensors: bool = True, check: Callable[[Mapping[str, TensorInfo]], None] | None = None
) -> Source:
    """Opens an adapter of llama.cpp's.

    Args:
        named: what the caller named. file: the file. tensors: whether they are read.
        check: called with what the header says before any tensor is read, to refuse the file.

    Raises:
        BadFile: it is missing, truncated, hostile, or no adapter. What ``check`` raises.
    """
    try:
        with open_given(file) as stream, on_cpu():
            header = checked_gguf(file, stream, stream.seek(0, 2))
            _check_adapter(file, header)
            infos = {name: _info(file, name, one) for name, one in header.tensors.items()}
            if check is not None:
                check(infos)
            read = {name: _read(file, stream, one) for name, one in header.tensors.items()} if tensors else {}
    except FileNotFoundError:
        raise BadFile(f"there is no file {file}; check the path") from None
    except OSError as error:
        raise BadFile(f"{file} cannot be read: {error.strerror or error}") from error
    return Source(named, infos, read, {key: _said(value) for key, value in header.entries.items()})


def _said(value: Value) -> str:
    return "" if value is None else value if isinstance(value, str) else repr(value)


def _check_adapter(file: Path, header: GgufHeader) -> None:
    kind, sort = header.entries.get("general.type"), header.entries.get("adapter.type")
    if kind != "adapter":
        raise BadFile(f"{file} is a GGUF file of the type {kind!r}, and no adapter: it holds a model or a part of one")
    if sort != "lora":
        raise BadFile(f"{file} is an adapter of llama.cpp's of the kind {sort!r}; 'lora' is the one that can be read")


def _info(file: Path, name: str, one: GgufTensor) -> TensorInfo:
    if one.type not in _TYPES and one.type != _Q8:
        raise BadFile(
            f"{file}: the tensor {name[:200]!r} is of ggml's type {one.type}, and adapters are read in F32, F16, BF16, "
            "F64 and Q8_0: write it in one of these"
        )
    assert one.size is not None, "of a type that is known"
    return TensorInfo(_TYPES[one.type][0] if one.type in _TYPES else "F32", one.shape, one.begin, one.begin + one.size)


def _read(file: Path, stream: BinaryIO, one: GgufTensor) -> Tensor:
    assert one.size is not None, "of a type that is known"
    data = torch.empty(one.size, dtype=torch.uint8)
    stream.seek(one.begin)
    if one.size and stream.readinto(data.numpy().data) != one.size:  # type: ignore[attr-defined]
        raise BadFile(f"{file} became shorter while it was read; is it still being written?")
    if one.type != _Q8:
        return data.view(_TYPES[one.type][1]).view(one.shape)
    blocks = data.view(-1, 2 + _BLOCK)
    scales, codes = blocks[:, :2].contiguous().view(torch.float16), blocks[:, 2:].contiguous().view(torch.int8)
    return (scales.float() * codes.float()).view(one.shape)


def write_gguf(file: Path, tensors: Mapping[str, Tensor], entries: Mapping[str, str | float]) -> None:
    """Writes a file: all of it or nothing, and the same bytes for the same content.

    Args:
        file: where to. tensors: by name, of any shape ``(...)``. entries: texts, and numbers as fp32.

    Raises:
        BadFile: nothing can be written there. BadConfig: a type that cannot be stored.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _NUMBERS:
            raise BadConfig(f"a GGUF file holds {name!r} as fp32, fp16 or bf16, not as {tensor.dtype}: give another")
    ordered, offset = sorted(tensors.items()), 0
    head = [MAGIC, struct.pack("<IQQ", VERSION, len(ordered), len(entries))]
    head += [_text(key) + _entry(value) for key, value in sorted(entries.items(), key=_first_of)]
    for name, tensor in ordered:
        sizes = tuple(reversed(tensor.shape))
        head.append(_text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, _NUMBERS[tensor.dtype], offset))
        offset += _up(tensor.numel() * tensor.element_size())
    data = b"".join(head)
    with atomic_path(file) as temporary, temporary.open("wb") as stream:
        stream.write(data + b"\0" * (_up(len(data)) - len(data)))
        for _, tensor in ordered:
            part = tensor.detach().cpu().contiguous().reshape(-1)
            stream.write(part.view(torch.uint8).numpy().data if part.numel() else b"")
            stream.write(b"\0" * (_up(part.numel() * part.element_size()) - part.numel() * part.element_size()))


def _first_of(entry: tuple[str, object]) -> tuple[bool, str]:
    """llama.cpp's readers look for the architecture first."""
    return not entry[0].startswith("general."), entry[0]


def _up(size: int) -> int:
    return math.ceil(size / ALIGNMENT) * ALIGNMENT


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _entry(value: str | float) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _TEXT) + _text(value)
    return struct.pack("<If", _FLOAT, value)
