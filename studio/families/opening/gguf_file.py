"""Denoisers in llama.cpp's ``.gguf`` files: what such a file holds, and its tensors as diffusers takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy
import torch
from torch import Tensor

from studio.claims import Header, TensorInfo
from studio.errors import BadFile
from studio.gguf_header import checked_gguf
from studio.given import open_given
from studio.packages import need

__all__ = ["gguf_header", "gguf_tensors", "is_gguf"]

_WORDS: Final = {"F32": ("F32", 4), "F16": ("F16", 2)}
"""GGUF's types that are stored as they are -> the container's words, and bytes of a number."""


def is_gguf(file: Path) -> bool:
    """Says whether a file is one, by its name."""
    return file.suffix.lower() == ".gguf"


def _reader(file: Path) -> Any:
    library = need("gguf", f"{file}: bases in .gguf files", extra="gguf")
    with open_given(file) as stream:
        checked_gguf(file, stream, stream.seek(0, 2))  # the library believes what a header announces
    try:
        return library.GGUFReader(file)
    except Exception as problem:  # whatever it makes of bytes that are no such file
        raise BadFile(f"{file} is no whole GGUF file ({problem!s:.200})") from problem


def gguf_header(file: Path) -> Header:
    """Returns what a file holds: names and shapes as torch has them; what is in blocks counts as bf16.

    Raises:
        BadFile: it is no whole GGUF file. MissingPackage: what reads it is not installed.
    """
    tensors = {}
    for one in _reader(file).tensors:
        shape = tuple(int(size) for size in reversed(one.shape))
        word, size = _WORDS.get(one.tensor_type.name, ("BF16", 2))
        tensors[str(one.name)] = TensorInfo(word, shape, 0, int(one.n_elements) * size)
    return Header(tensors, {}, 0)


def gguf_tensors(file: Path) -> dict[str, Tensor]:
    """Returns the tensors of a file, blocks as diffusers' ``GGUFParameter``.

    Raises:
        BadFile: it is no whole GGUF file, or has blocks of a type that diffusers does not read.
    """
    utils = need("diffusers.quantizers.gguf.utils", "bases in .gguf files", extra="gguf")
    found: dict[str, Tensor] = {}
    for one in _reader(file).tensors:
        numbers = torch.from_numpy(numpy.array(one.data))
        if one.tensor_type.name in _WORDS:
            found[str(one.name)] = numbers
        elif one.tensor_type in utils.SUPPORTED_GGUF_QUANT_TYPES:
            found[str(one.name)] = utils.GGUFParameter(numbers, quant_type=one.tensor_type)
        else:
            raise BadFile(f"{file} has blocks of the type {one.tensor_type.name}, which diffusers does not read")
    return found
