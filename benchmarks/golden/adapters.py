"""What sections do with an adapter: attach it, move it from its start, and save it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

import studio
from benchmarks.golden.record import REFUSED, Record
from benchmarks.golden.subjects import Subject

FORMATS: Final = ("diffusers", "kohya", "peft")
DATA_STARTS: Final = ("eva", "corda", "corda-kpm")
"""The starts of LoRA that are made from data."""
METADATA: Final = {"trigger": "sks dog", "seed": "3", "base": "golden", "title": "Dog"}
"""What is written about an adapter into its file."""


def attach(model: Any, subject: Subject, config: Any, **more: Any) -> Any:
    """Attaches, with data where the start is made from data."""
    if getattr(config, "init", "") in DATA_STARTS:
        more["calibrate"] = subject.call
    return studio.attach(model, config, **more)


def shake(tensors: Iterable[Tensor], scale: float = 0.3, seed: int = 1) -> None:
    """Moves those of the tensors that are trained away from their start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in tensors:
            if tensor.requires_grad:
                tensor += scale * torch.randn(tensor.shape, generator=generator).to(tensor)


def place_of(folder: Path, format: str | None, suffix: str = "") -> Path:
    """Where an adapter is saved: PEFT's format is a folder; without a format it is the studio's own file."""
    return folder / (f"peft{suffix}" if format == "peft" else f"{format or 'studio'}{suffix}.safetensors")


def save(record: Record, subject: Subject, config: Any, format: str | None) -> None:
    """Writes an adapter file and a narrow one, and what inspecting them says."""
    model = subject.make()
    attach(model, subject, config, name="dog")
    shake(studio.state(model, "dog").values())
    for suffix, dtype in (("", None), ("-narrow", torch.bfloat16)):
        place = place_of(record.folder, format, suffix)
        more = {"name": "dog", "format": format, "dtype": dtype, "metadata": METADATA}
        if record.attempt(f"save as {place.name}", studio.save, model, place, **more) is REFUSED:
            return
        found = studio.inspect(place)
        record.say(f"inspect {place.name}", (found.method, found.format, found.name, found.family, found.rank))
        record.say(f"inspect {place.name}", (found.config, found.sites, dict(found.facts), dict(found.unread)))
