"""The hash of a base: which weights it has, whatever it is called and wherever it stands.

There are two, and a base always has the same one. Bases of the families that were hashed so from the beginning, and
objects, which have no files, are hashed over every weight as fp32 (:func:`weights_hash`): what their runs and adapters
have recorded stays true. All other bases are hashed over the bytes of their tensors as the files hold them
(:func:`files_hash`): no number is converted, nothing is read into memory, and the result is kept beside the files'
sizes and times, so that 24 gigabytes are read for it once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from torch import nn

from studio.atomic import atomic_write
from studio.caches import cache_folder
from studio.claims import Header, TensorInfo
from studio.errors import BadFile
from studio.families.opening.gguf_file import is_gguf
from studio.families.opening.weights import Weights, header_of
from studio.mapped import let_pages_go

__all__ = ["files_hash", "modules_hash", "weights_hash"]

KEPT: Final = 64 << 20
"""Bytes from which on a hash is kept: a smaller base is read faster than it is looked up."""

_PIECE: Final = 1 << 24
"""Bytes, or numbers, that are hashed at a time."""


def weights_hash(pipe: Any) -> str:
    """SHA-256 over every weight of a pipeline, as fp32 little-endian bytes with its name and shape.

    The type on disk does not matter: an fp16 folder opened in fp16 or in fp32 has one hash. Adapters that are attached
    do not count (their keys hold ``.adapters.``). A piece of one tensor at a time is copied, and what is mapped from a
    file does not count as memory any more once it has been read.
    """
    return modules_hash({name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)})


def modules_hash(modules: Mapping[str, nn.Module]) -> str:
    """As :func:`weights_hash`, of modules by name."""
    digest = hashlib.sha256()
    for name, module in sorted(modules.items()):
        for key, tensor in sorted(module.state_dict().items()):
            if ".adapters." in key or key.startswith("adapters."):
                continue
            value = (_fetched(module, key) if tensor.is_meta else tensor).detach().cpu()
            digest.update(f"{name}.{key} {tuple(value.shape)}\n".encode())
            for piece in _pieces(value):
                exact = piece.float() if piece.is_floating_point() else piece.long()
                digest.update(exact.contiguous().reshape(-1).numpy().data)
                let_pages_go(piece)
    return digest.hexdigest()


def _pieces(value: torch.Tensor) -> Sequence[torch.Tensor]:
    """A tensor in pieces of so many numbers; one of a library's own class as it is."""
    if not value.numel():
        return ()
    return value.reshape(-1).split(_PIECE) if type(value) is torch.Tensor else (value,)


def files_hash(weights: Weights) -> str:
    """SHA-256 over the tensors in the files of a base: name, type, shape and bytes, component by component.

    How the tensors are spread over files, and the texts that go with them, do not matter; the type does.

    Args:
        weights: the files, by component.

    Raises:
        BadFile: a file is gone, or damaged.
    """
    found = {name: [(file, *_stat(file)) for file in files] for name, files in sorted(weights.items())}
    place = cache_folder() / "hashes" / f"{_digest(repr(found))[:32]}.json"
    small = sum(size for files in found.values() for _, size, _ in files) < KEPT
    known = None if small else _kept(place)
    if known is not None:
        return known
    made = _made(weights)
    if not small:
        note = {
            "hash": made,
            "files": {str(file): [size, time] for files in found.values() for file, size, time in files},
        }
        with contextlib.suppress(OSError, BadFile):  # a cache that cannot be written is none
            place.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(place, json.dumps(note, indent=1).encode())
    return made


def _stat(file: Path) -> tuple[int, int]:
    try:
        found = file.resolve().stat()
    except OSError as problem:
        raise BadFile(f"{file} cannot be read: {problem.strerror or problem}") from problem
    return found.st_size, found.st_mtime_ns


def _kept(place: Path) -> str | None:
    try:
        return str(json.loads(place.read_text(encoding="utf-8"))["hash"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _made(weights: Weights) -> str:
    digest = hashlib.sha256()
    for component, files in sorted(weights.items()):
        with contextlib.ExitStack() as opened:
            places: dict[str, tuple[TensorInfo, int, BinaryIO]] = {}
            for file in files:
                stream: BinaryIO = opened.enter_context(file.open("rb"))
                if is_gguf(file):  # one whose tensors are in blocks: all its bytes
                    digest.update(f"{component} {file.stat().st_size}\n".encode())
                    _feed(digest, stream, file.stat().st_size)
                    continue
                header: Header = header_of(file)
                places.update((key, (info, header.start, stream)) for key, info in header.tensors.items())
            for key, (info, start, stream) in sorted(places.items()):
                digest.update(f"{component}.{key} {info.dtype} {info.shape}\n".encode())
                stream.seek(start + info.begin)
                _feed(digest, stream, info.end - info.begin)
    return digest.hexdigest()


def _feed(digest: Any, stream: BinaryIO, count: int) -> None:
    """Feeds so many bytes; read in pieces, and not mapped, so that they do not count as this process's memory."""
    while count:
        piece = stream.read(min(count, _PIECE))
        if not piece:
            raise BadFile("a file of the base became shorter while it was read; is it still being written?")
        digest.update(piece)
        count -= len(piece)


def _fetched(module: nn.Module, key: str) -> torch.Tensor:
    """A tensor that offloading keeps away from its module."""
    from accelerate.utils import align_module_device

    path, _, name = key.rpartition(".")
    owner = module.get_submodule(path)
    with align_module_device(owner):
        return getattr(owner, name).detach().clone()
