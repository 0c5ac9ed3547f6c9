"""Tensors that cost time to make, kept under a key of everything that they were made from."""

from __future__ import annotations

import contextlib
import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from studio.atomic import atomic_write
from studio.caches import cache_folder

__all__ = ["TensorCache", "cache_folder", "content_key"]


def content_key(*parts: Any) -> str:
    """Returns a key (SHA-256, hexadecimal) that is equal exactly when all parts are.

    Args:
        parts: ``None``, bools, numbers, texts, bytes, paths, tensors, and lists, tuples and dicts of these. Types
            count: ``1``, ``1.0``, ``True`` and ``"1"`` are four keys. The order of a dict does not.

    Raises:
        TypeError: another type, which could look equal and not be.

    Example:
        >>> content_key("a", "b") == content_key("ab", "")
        False
        >>> content_key({"x": 1, "y": 2}) == content_key({"y": 2, "x": 1})
        True
    """
    total = hashlib.sha256()
    _feed(total, parts)
    return total.hexdigest()


class TensorCache:
    """A store of named tensors under keys, in a folder or in memory.

    An entry is one safetensors file with a checksum, written at once or not at all. A damaged entry counts as missing
    and is removed, so it is made again.

    Args:
        folder: where the files go; ``None`` keeps the tensors in memory.

    Example:
        >>> cache = TensorCache(None)
        >>> key = content_key("latents", "photo of a dog")
        >>> cache.get(key) is None
        True
        >>> cache.put(key, {"mean": torch.zeros(2)})
        >>> cache.get(key)
        {'mean': tensor([0., 0.])}
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else Path(folder)
        self._memory: dict[str, dict[str, Tensor]] = {}

    def get(self, key: str) -> dict[str, Tensor] | None:
        """Returns the tensors under ``key``, on the CPU, or ``None`` where there are none."""
        if self.folder is None:
            return {name: tensor.clone() for name, tensor in self._memory[key].items()} if key in self._memory else None
        file = self._file(key)
        try:
            data = file.read_bytes()
        except OSError:
            return None
        tensors = _read(data)
        if tensors is None:
            with contextlib.suppress(OSError):
                file.unlink()
        return tensors

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keeps ``tensors`` under ``key``.

        Raises:
            BadFile: the folder cannot be written to.
        """
        kept = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
        if self.folder is None:
            self._memory[key] = kept
        else:
            atomic_write(self._file(key), save_tensors(kept, metadata={"checksum": _checksum(kept)}))

    def __contains__(self, key: str) -> bool:
        return key in self._memory if self.folder is None else self._file(key).is_file()

    def _file(self, key: str) -> Path:
        return Path(self.folder or "") / key[:2] / f"{key}.safetensors"


def _read(data: bytes) -> dict[str, Tensor] | None:
    try:
        tensors = load_tensors(data)
        (length,) = struct.unpack("<Q", data[:8])
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__", {})
    except (SafetensorError, ValueError, struct.error):
        return None
    return tensors if metadata.get("checksum") == _checksum(tensors) else None


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    return content_key(dict(tensors))


def _feed(total: hashlib._Hash, part: Any) -> None:
    """Feeds one part with its type and length, so that no two different lists of parts give the same bytes."""
    if part is None or isinstance(part, (bool, int, float)):
        _block(total, type(part).__name__, repr(part).encode())
    elif isinstance(part, (str, Path)):
        _block(total, "str" if isinstance(part, str) else "path", str(part).encode())
    elif isinstance(part, bytes):
        _block(total, "bytes", part)
    elif isinstance(part, Tensor):
        values = part.detach().to("cpu").contiguous()
        _block(
            total, f"tensor {values.dtype} {tuple(values.shape)}", values.flatten().view(torch.uint8).numpy().tobytes()
        )
    elif isinstance(part, Mapping):
        _block(total, "dict", str(len(part)).encode())
        for key in sorted(part, key=lambda key: (type(key).__name__, str(key))):
            _feed(total, key)
            _feed(total, part[key])
    elif isinstance(part, (list, tuple)):
        _block(total, "list", str(len(part)).encode())
        for entry in part:
            _feed(total, entry)
    else:
        raise TypeError(f"a cache key cannot be made of {type(part).__name__}: {part!r}")


def _block(total: hashlib._Hash, label: str, data: bytes) -> None:
    total.update(f"{label}:{len(data)}:".encode())
    total.update(data)
