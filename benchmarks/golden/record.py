"""How a case is written down: its tensors, and what was said."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor

import studio

REFUSED: Final = "refused"
"""What an attempt gives that was refused."""
REFUSALS: Final = (studio.StudioError, ValueError, RuntimeError, LookupError)


class Record:
    """Tensors by name and lines of text, written as two files into one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors: dict[str, Tensor] = {}
        self.lines: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)

    def say(self, what: str, words: object) -> None:
        """Adds a line."""
        self.lines.append(f"{what}: {words}")

    def keep(self, name: str, found: Tensor | Mapping[str, Tensor]) -> None:
        """Adds a tensor, or several under one beginning."""
        several = {name: found} if isinstance(found, Tensor) else {f"{name}.{key}": t for key, t in found.items()}
        self.tensors |= {key: tensor.detach().clone().contiguous() for key, tensor in several.items()}

    def attempt(self, what: str, do: Callable[..., Any], *args: Any, **more: Any) -> Any:
        """Calls ``do``; a refusal is written down and gives :data:`REFUSED`, and warnings are written down."""
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            try:
                result = do(*args, **more)
            except REFUSALS as refusal:
                self.say(what, f"{type(refusal).__name__}: {refusal}")
                result = REFUSED
        for warning in heard:
            self.say(f"{what}, {warning.category.__name__}", warning.message)
        return result

    def attempt_output(self, name: str, do: Callable[..., Any], *args: Any, **more: Any) -> None:
        """Keeps the tensor that a call gives."""
        found = self.attempt(name, do, *args, **more)
        if found is not REFUSED:
            self.keep(name, found)

    def write(self) -> None:
        """Writes the two files."""
        if self.tensors:
            save_file(dict(sorted(self.tensors.items())), self.folder / "outputs.safetensors")
        (self.folder / "outputs.txt").write_text("".join(f"{line}\n" for line in self.lines), encoding="utf-8")


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Returns the SHA-256 of names, types and bytes, in the order of the mapping."""
    whole = hashlib.sha256()
    for key, tensor in tensors.items():
        whole.update(f"{key} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        whole.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def file_digest(place: Path) -> str:
    """Returns the SHA-256 of a file, or of the names and bytes of the files in a folder."""
    whole = hashlib.sha256()
    for file in [place] if place.is_file() else sorted(place.iterdir()):
        whole.update((b"" if place.is_file() else file.name.encode()) + file.read_bytes())
    return whole.hexdigest()
