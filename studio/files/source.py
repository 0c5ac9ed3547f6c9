"""Opening what a caller names: a single file, or a folder that holds one."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from studio.errors import BadFile
from studio.files.a1111_word import open_word_picture, word_in
from studio.files.cache import CACHE, Kept, now, stamp_of
from studio.files.cloneofsimo import EXPECTED, listed
from studio.files.format import Source
from studio.files.gguf_container import SUFFIX, open_gguf
from studio.files.header import DTYPES, Header, TensorInfo, read_numbers, read_tensors
from studio.files.metadata import stated_hash
from studio.files.mlx import MLX_FILE
from studio.files.payload import Payload
from studio.files.peft import CONFIG_FILE, TENSOR_FILE
from studio.given import check_regular, parse_json, read_given

__all__ = ["PICKLED", "open_source", "read_fields", "tensor_file"]

_IN_FOLDERS: Final = (TENSOR_FILE, "pytorch_lora_weights.safetensors", MLX_FILE)
PICKLED: Final = (".bin", ".pt", ".pth", ".ckpt")


def open_source(
    file: Path,
    *,
    tensors: bool = True,
    pickled: bool = False,
    check: Callable[[Mapping[str, TensorInfo]], None] | None = None,
) -> Source:
    """Opens an adapter file.

    Args:
        file: a safetensors file, a folder with one of PEFT's, diffusers' or MLX's names in it, a ``.gguf`` file, or a
            PNG that holds a word.
        tensors: whether the tensors are read, or the header and single numbers only.
        pickled: whether a ``.pt`` or ``.bin`` file may be read (by ``torch.load(weights_only=True)``).
        check: called with what the header says before any tensor is read, to refuse the file.

    Raises:
        BadFile: nothing that can be read is there. What ``check`` raises.
    """
    named, file = file, tensor_file(file, pickled)
    if file.suffix.lower() == SUFFIX:
        return open_gguf(named, file, tensors=tensors, check=check)
    peft, mlx = _config_of(file, TENSOR_FILE), _config_of(file, MLX_FILE)
    if file.suffix in PICKLED:
        if not pickled:
            raise BadFile(
                f"{file} is a {file.suffix} file, which can run code when it is opened; convert it to safetensors, or "
                "ask for pickled=True, which reads its tensors only"
            )
        return _open_pickled(named, file, peft, check)
    if file.suffix == ".png":
        return open_word_picture(file)
    if tensors:
        return replace(_open_whole(named, file, peft, check), mlx=mlx)
    header, numbers = read_numbers(file)
    return Source(named, header.tensors, numbers, header.metadata, peft, mlx=mlx)


def _open_whole(
    named: Path, file: Path, peft: dict[str, Any] | None, check: Callable[[Mapping[str, TensorInfo]], None] | None
) -> Source:
    stamp, read_at = stamp_of(file), now()
    kept = CACHE.get(stamp, "tensors")
    if kept is None:
        source, data = _read_whole(named, file, peft, check, keep=stamp is not None and CACHE.takes(stamp.size))
        if data is not None and stamp == stamp_of(file):
            CACHE.put(stamp, "tensors", Kept(replace(source, tensors={}), data), read_at=read_at)
        return source
    held: Source = kept.value
    if check is not None:
        check(held.infos)
    return replace(
        held, file=named, peft=peft, infos=dict(held.infos), metadata=dict(held.metadata),
        tensors=kept.tensors(held.infos),
    )  # fmt: skip


def _read_whole(
    named: Path,
    file: Path,
    peft: dict[str, Any] | None,
    check: Callable[[Mapping[str, TensorInfo]], None] | None,
    *,
    keep: bool,
) -> tuple[Source, bytearray | None]:
    """What is in a file, and its bytes behind the header if they are to be kept."""
    payload, data = Payload(), bytearray()

    def look(header: Header) -> None:
        if check is not None:
            check(header.tensors)
        payload.expect(stated_hash(header.metadata))

    def add(part: memoryview) -> None:
        payload.add(part)
        if keep:
            data.extend(part)

    try:
        header, loaded = read_tensors(file, look, add)
    finally:
        payload.end()
    return Source(named, header.tensors, loaded, header.metadata, peft, payload), data if keep else None


def tensor_file(file: Path, pickled: bool = False) -> Path:
    """Returns the file of tensors that a path means, which may be a folder.

    Args:
        file: the path. pickled: whether one that ``torch.save`` wrote counts too.

    Raises:
        BadFile: there is none in the folder, or it cannot be looked at.
    """
    try:
        if not file.is_dir():
            return file
        inside = sorted(path.name for path in file.iterdir())
    except (OSError, ValueError) as error:  # a name that is too long, a folder that may not be read
        reason = getattr(error, "strerror", None) or error
        raise BadFile(f"{str(file)[:200]} cannot be looked at: {reason}; check the path") from None
    wanted = (*_IN_FOLDERS, *(("adapter_model.bin",) if pickled else ()))
    found = next((name for name in wanted if name in inside), None)
    if found is None:
        listed = ", ".join(inside[:5]) or "nothing"
        raise BadFile(f"the folder {file} holds no {' or '.join(_IN_FOLDERS)}; found: {listed}")
    return file / found


def _config_of(file: Path, usual: str) -> dict[str, Any] | None:
    """The config beside a file that has the usual name of a program's."""
    place = file.with_name(CONFIG_FILE)
    if file.stem != Path(usual).stem or not place.exists():
        return None
    return read_fields(place)


def read_fields(place: Path) -> dict[str, Any]:
    """Reads a config of PEFT's or MLX's.

    Raises:
        BadFile: it is no regular file, too large, or no table in JSON.
    """
    try:
        fields = parse_json(read_given(place, "config-bytes").decode("utf-8"))
    except BadFile as error:
        raise BadFile(f"{place} {error}") from None
    except (ValueError, OSError) as error:
        raise BadFile(f"{place} cannot be read as JSON ({error}); write it again, or get it again") from None
    if not isinstance(fields, dict):
        raise BadFile(f"{place} is not a table of fields; write it again, or get it again")
    return fields


def _unpickled(file: Path) -> Any:
    try:
        _check_unpacked(file)
        with warnings.catch_warnings(), torch.serialization.safe_globals([nn.ParameterDict]):  # as A1111 pickled words
            warnings.filterwarnings("ignore", message="Detected pickle protocol")  # it is read, or refused below
            return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BadFile(f"there is no file {file}; check the path") from None
    except BadFile as error:
        raise BadFile(f"{file} {error}") from None
    except (
        pickle.UnpicklingError, RuntimeError, EOFError, ValueError, zipfile.BadZipFile, OSError, LookupError,
        AttributeError, TypeError,
    ) as error:  # fmt: skip
        reason = str(error).partition("\n")[0][:200]
        raise BadFile(f"{file} holds more than tensors, or is damaged: {reason}") from None


def _open_pickled(
    named: Path, file: Path, peft: dict[str, Any] | None, check: Callable[[Mapping[str, TensorInfo]], None] | None
) -> Source:
    content = _unpickled(file)
    if isinstance(content, list):
        found = listed(content)
        if found is None:
            raise BadFile(f"{file} holds a list of {len(content)} entries, as cloneofsimo's trainer writes; {EXPECTED}")
        content = found
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    content, stated = word_in(content)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise BadFile(f"{file} does not hold a table of tensors; it is no adapter of a kind that can be read")
    words = {dtype: word for word, dtype in DTYPES.items()}
    loaded = {str(key): value.detach() for key, value in content.items()}
    infos = {
        key: TensorInfo(words.get(value.dtype, str(value.dtype)), tuple(value.shape), 0, 0)
        for key, value in loaded.items()
    }
    if check is not None:
        check(infos)
    return Source(named, infos, loaded, stated, peft)


def _check_unpacked(file: Path) -> None:
    """Refuses a zip that unpacks to much more than it is, which ``torch.save`` never writes."""
    size = check_regular(file)
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as packed:
            unpacked = sum(entry.file_size for entry in packed.infolist())
        if unpacked > 2 * size + (1 << 20):
            raise BadFile(f"unpacks to {unpacked:,} bytes from {size:,}; torch does not write such files")
