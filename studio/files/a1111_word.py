"""A1111's learned words: a table with ``string_to_param``, pickled, or as base64 of JSON in a text of a PNG."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from studio.errors import BadFile
from studio.files.format import Source
from studio.files.header import TensorInfo
from studio.given import check_regular, parse_json
from studio.limits import within

__all__ = ["TEXT", "open_word_picture", "word_in"]

TEXT: Final = "sd-ti-embedding"
_TENSOR: Final = "TORCHTENSOR"


def open_word_picture(file: Path) -> Source:
    """Opens a picture that holds a learned word, as a pickle of A1111's is opened.

    Args:
        file: a PNG with the text ``sd-ti-embedding``. One whose pixels hide the word is not read.

    Raises:
        BadFile: it is none, or what it holds is no word.
    """
    content = _content(file)
    params = content.get("string_to_param")
    if not isinstance(params, Mapping):
        raise BadFile(f"{file}: its text {TEXT!r} has no string_to_param; it holds no learned word")
    tensors = {f"string_to_param.{key}": _tensor(file, value) for key, value in params.items()}
    infos = {key: TensorInfo("F32", tuple(tensor.shape), 0, 0) for key, tensor in tensors.items()}
    return Source(file, infos, tensors, texts_of(content))


def word_in(content: Any) -> tuple[Any, dict[str, str]]:
    """Returns the tensors of a pickled word by key, and what it says beside them; anything else as it is.

    Args:
        content: what a pickle holds. Older ones have a ``ParameterDict`` in it, of which the parameters alone are read.
    """
    if not isinstance(content, dict) or "string_to_param" not in content:
        return content, {}
    params = content["string_to_param"]
    if isinstance(params, nn.Module):
        params = vars(params).get("_parameters")
    if not isinstance(params, dict):
        return content, {}
    return {f"string_to_param.{key}": value for key, value in params.items()}, texts_of(content)


def texts_of(content: Mapping[Any, Any]) -> dict[str, str]:
    """Returns what A1111 says about a word beside its vectors, as texts by name."""
    own = ("name", "step", "sd_checkpoint", "sd_checkpoint_name")
    return {name: str(content[name]) for name in own if isinstance(content.get(name), (str, int))}


def _content(file: Path) -> Mapping[str, Any]:
    from PIL import Image

    try:
        within("picture-bytes", check_regular(file), "has")
        with Image.open(file, formats=("PNG",)) as image:
            text = image.info.get(TEXT)
    except FileNotFoundError:
        raise BadFile(f"there is no file {file}; check the path") from None
    except BadFile as error:
        raise BadFile(f"{file} {error}") from None
    except Exception as error:  # a decoder raises anything on hostile bytes; whatever it is, the file is named
        raise BadFile(f"{file} cannot be read as a PNG ({type(error).__name__})") from None
    if not isinstance(text, str):
        raise BadFile(
            f"{file} is a picture without the text {TEXT!r}, so it holds no learned word that can be read (one that "
            "its pixels hide is not); give the .pt or .safetensors file"
        )
    try:
        within("config-bytes", len(text), "has")
        content = parse_json(base64.b64decode(text, validate=True).decode("utf-8"))
    except (ValueError, binascii.Error, BadFile) as error:
        raise BadFile(f"{file}: its text {TEXT!r} cannot be read ({str(error)[:120]})") from None
    if not isinstance(content, dict):
        raise BadFile(f"{file}: its text {TEXT!r} is no table of fields")
    return content


def _tensor(file: Path, value: Any) -> Tensor:
    """The vectors that A1111 writes as a table of one list."""
    rows = value.get(_TENSOR) if isinstance(value, Mapping) else None
    try:
        return torch.tensor(rows, dtype=torch.float32, device="cpu")
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise BadFile(f"{file}: its text {TEXT!r} holds something that is no list of vectors") from None
