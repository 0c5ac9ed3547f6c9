"""Opening what a caller names: a single file, or a folder that holds one."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from studio.errors import BadFile
from studio.files.format import Source
from studio.files.header import DTYPES, TensorInfo, read_header, read_tensors
from studio.files.peft import CONFIG_FILE, TENSOR_FILE

__all__ = ["open_source"]

_IN_FOLDERS: Final = (TENSOR_FILE, "pytorch_lora_weights.safetensors")
_PICKLED: Final = (".bin", ".pt", ".pth", ".ckpt")


def open_source(file: Path, *, tensors: bool = True, pickled: bool = False) -> Source:
    """Opens an adapter file.

    Args:
        file: a safetensors file, or a folder with one of PEFT's or diffusers' names in it.
        tensors: whether the tensors are read, or the header only.
        pickled: whether a ``.pt`` or ``.bin`` file may be read (by ``torch.load(weights_only=True)``).

    Raises:
        BadFile: nothing that can be read is there.
    """
    named = file
    if file.is_dir():
        found = [file / name for name in _IN_FOLDERS if (file / name).is_file()]
        found += [file / "adapter_model.bin"] if pickled and (file / "adapter_model.bin").is_file() else []
        if not found:
            inside = ", ".join(sorted(path.name for path in file.iterdir())[:5]) or "nothing"
            raise BadFile(f"the folder {file} holds no {' or '.join(_IN_FOLDERS)}; found: {inside}")
        file = found[0]
    peft = _peft_config(file)
    if file.suffix in _PICKLED:
        if not pickled:
            raise BadFile(
                f"{file} is a {file.suffix} file, which can run code when it is opened; convert it to safetensors, or "
                "ask for pickled=True, which reads its tensors only"
            )
        return _open_pickled(named, file, peft)
    if tensors:
        header, loaded = read_tensors(file)
        return Source(named, header.tensors, loaded, header.metadata, peft)
    header = read_header(file)
    return Source(named, header.tensors, {}, header.metadata, peft)


def _peft_config(file: Path) -> dict[str, Any] | None:
    """The config beside a file that has PEFT's name."""
    place = file.with_name(CONFIG_FILE)
    if file.stem != Path(TENSOR_FILE).stem or not place.is_file():
        return None
    try:
        fields = json.loads(place.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise BadFile(f"{place} cannot be read as JSON ({error}); write it again, or get it again") from None
    if not isinstance(fields, dict):
        raise BadFile(f"{place} is not a table of fields; write it again, or get it again")
    return fields


def _open_pickled(named: Path, file: Path, peft: dict[str, Any] | None) -> Source:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BadFile(f"there is no file {file}; check the path") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, zipfile.BadZipFile, OSError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise BadFile(f"{file} holds more than tensors, or is damaged: {reason}") from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise BadFile(f"{file} does not hold a table of tensors; it is no adapter of a kind that can be read")
    words = {dtype: word for word, dtype in DTYPES.items()}
    loaded = {str(key): value.detach() for key, value in content.items()}
    infos = {
        key: TensorInfo(words.get(value.dtype, str(value.dtype)), tuple(value.shape), 0, 0)
        for key, value in loaded.items()
    }
    return Source(named, infos, loaded, {}, peft)
