"""Where an adapter came from, so that a picture can name it: hashes of its file, or of its tensors."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from studio.adapters import AdapterInfo, state
from studio.errors import BadFile
from studio.files.cache import CACHE, Kept, now, stamp_of
from studio.files.source import tensor_file
from studio.given import check_regular
from studio.limits import limit

__all__ = ["Source", "source_of", "state_hash"]


CHUNK: Final = 2**20


@dataclass(frozen=True)
class Source:
    """The file of an adapter.

    Args:
        file: its name without its folder, which is nobody's business.
        sha256: hash (hex) of the whole file.
        lora_hash: hash (hex) of what follows the safetensors header: A1111 and its forks name adapters by it, since it
            does not change with the metadata.
    """

    file: str
    sha256: str
    lora_hash: str


def source_of(file: Path) -> Source:
    """Hashes an adapter's file; of a folder, the tensors' file in it.

    The hashes of a file that has not changed are remembered (:mod:`studio.files.cache`).

    Raises:
        BadFile: it cannot be read.
    """
    inner = tensor_file(file, pickled=True)
    stamp, read_at = stamp_of(inner), now()
    kept = CACHE.get(stamp, "hashes")
    if kept is None:
        kept = Kept(_hashed(inner))
        if stamp == stamp_of(inner):
            CACHE.put(stamp, "hashes", kept, read_at=read_at)
    return Source(file.name, *kept.value)


def _hashed(inner: Path) -> tuple[str, str]:
    whole, behind = hashlib.sha256(), hashlib.sha256()
    try:
        check_regular(inner)
        with inner.open("rb") as stream:
            start = stream.read(8)
            header = stream.read(min(int.from_bytes(start, "little"), limit("header-bytes")))
            whole.update(start + header)
            while block := stream.read(CHUNK):
                whole.update(block)
                behind.update(block)
    except OSError as problem:
        raise BadFile(f"{inner} cannot be read: {problem.strerror}") from None
    except BadFile as problem:
        raise BadFile(f"{inner} {problem}") from None
    return whole.hexdigest(), behind.hexdigest()


def state_hash(pipe: Any, info: AdapterInfo) -> str:
    """Hashes the config and the tensors of an adapter that has no file (it is being trained)."""
    digest = hashlib.sha256(f"{info.method} {info.config!r}\n".encode())
    for key, tensor in state(pipe, info.name).items():
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
