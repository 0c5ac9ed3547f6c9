"""Where an adapter came from, so that a picture can name it: hashes of its file, or of its tensors."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from studio.adapters import AdapterInfo, state

__all__ = ["Source", "source_of", "state_hash"]


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
    """Hashes an adapter's file; of a folder in PEFT's format, the tensors' file in it."""
    inner = file / "adapter_model.safetensors" if file.is_dir() else file
    data = inner.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    return Source(file.name, hashlib.sha256(data).hexdigest(), hashlib.sha256(data[header:]).hexdigest())


def state_hash(pipe: Any, info: AdapterInfo) -> str:
    """Hashes the config and the tensors of an adapter that has no file (it is being trained)."""
    digest = hashlib.sha256(f"{info.method} {info.config!r}\n".encode())
    for key, tensor in state(pipe, info.name).items():
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
