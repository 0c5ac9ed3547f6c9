"""The model that adapter files are loaded onto, and hand-made safetensors files."""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import studio
from studio.shown import shown

__all__ = ["Net", "load_and_look", "output", "packed", "write_raw"]


class Net(nn.Module):
    """Two linear layers, a convolution and an embedding, of sizes that tell them apart."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.emb = nn.Embedding(10, 8)
            self.lin = nn.Linear(8, 12)
            self.conv = nn.Conv1d(12, 8, 3, padding=1)
            self.out = nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps token ids ``(B, T)`` to ``(B, T, 8)``."""
        hidden = self.lin(self.emb(x)).transpose(1, 2)
        return self.out(self.conv(hidden).transpose(1, 2))


INPUT = torch.arange(10).reshape(2, 5)


def output(model: nn.Module) -> Tensor:
    """What the model computes."""
    with torch.no_grad():
        return model(INPUT)


def load_and_look(file: Path, wanted: Tensor | None = None, **options: Any) -> str:
    """Looks into a file and loads it; returns what is wrong with the outcome, ``""`` if nothing.

    Args:
        file: the file. wanted: what the model computes with it, where it may be loaded at all; None: anything finite.
        options: of :func:`studio.load`.

    Raises:
        StudioError: the file is refused, which is right.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = studio.inspect(file)
            shown(f"{found.metadata} {found.facts} {found.sites[:9]} {list(found.unread.items())[:9]}").encode()
        except studio.StudioError as error:
            shown(error).encode()
        model = Net()
        report = studio.load(model, file, **options)
        got = output(model)
    if not bool(torch.isfinite(got).all()):
        return "it loads and computes NaN"
    if wanted is None or report.notes or report.ignored:
        return ""
    return "" if torch.allclose(got, wanted, rtol=1e-5, atol=1e-6) else "it loads and computes something else, silently"


def packed(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, **changes: Any) -> bytes:
    """The bytes of a safetensors file, with entries of its header changed."""
    head: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    words = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64",
             torch.int64: "I64", torch.uint8: "U8", torch.bool: "BOOL", torch.complex64: "C64",
             torch.float8_e4m3fn: "F8_E4M3", torch.int32: "I32"}  # fmt: skip
    body = b""
    for name, tensor in tensors.items():
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        entry = {"dtype": words[tensor.dtype], "shape": list(tensor.shape)}
        head[name] = {**entry, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    return raw(json.dumps({**head, **changes}).encode(), body)


def raw(head: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    """The bytes of a file with this text as header."""
    return struct.pack("<Q", len(head) if length is None else length) + head + body


def write_raw(file: Path, content: bytes) -> Path:
    """Writes bytes, and the folder that they are in."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file
