"""Pictures of A1111 and its forks: the text under ``parameters``, or in a JPEG's or WebP's ``UserComment``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from studio.limits import within
from studio.pipelines.foreign.said import Notes, Said
from studio.pipelines.parameters import read_parameters

__all__ = ["read"]

_SIZE: Final = re.compile(r"\s*(\d{1,9})\s*x\s*(\d{1,9})\s*")
# fields that say nothing about how the picture is drawn, or say again what stands elsewhere
SPARE: Final = {"Version", "User", "Lora hashes", "Model", "Model hash", "Sampler", "Schedule type", "Size"}
NUMBERS: Final[Mapping[str, Callable[[Notes, str, str], None]]] = {
    "Steps": lambda notes, name, value: notes.whole("steps", name, value),
    "Seed": lambda notes, name, value: notes.whole("seed", name, value, least=0),
    "CFG scale": lambda notes, name, value: notes.number("guidance", name, value),
    "Distilled CFG Scale": lambda notes, name, value: notes.number("embedded_guidance", name, value),
    "Hires upscale": lambda notes, name, value: notes.number("upscale", name, value, most=16),
    "Hires steps": lambda notes, name, value: notes.whole("upscale_steps", name, value, least=0),
}


def read(texts: Mapping[str, str]) -> Said | None:
    """Reads what A1111 wrote.

    Args:
        texts: the texts of the picture.

    Returns:
        What it says; None: A1111 did not make it.

    Raises:
        BadFile: its text is too long.

    Example:
        >>> said = read({"parameters": "a dog\\nSteps: 20, Sampler: Euler a, Seed: 7, Size: 512x768, ENSD: 31337"})
        >>> said.numbers, said.unused
        ({'steps': 20, 'seed': 7, 'scheduler': 'euler-a', 'width': 512, 'height': 768}, ('ENSD: 31337',))
    """
    text = texts.get("parameters")
    if not text or not text.strip():
        return None
    within("metadata-bytes", len(text), "the 'parameters' text of the picture has")
    parameters, notes = read_parameters(text), Notes()
    fields = parameters.fields
    for name, value in fields.items():
        if name in NUMBERS:
            NUMBERS[name](notes, name, value)
        elif name == "Denoising strength":
            _strength(notes, name, value, twice="Hires upscale" in fields)
        elif name not in SPARE and not (name == "Hires upscaler" and value == "Lanczos"):
            notes.leave(name, value)
    notes.scheduler(fields.get("Sampler"), fields.get("Schedule type"))
    size = _SIZE.fullmatch(fields.get("Size", ""))
    if size:
        notes.size(size[1], size[2])
    elif "Size" in fields:
        notes.leave("Size", fields["Size"])
    base = fields.get("Model") or fields.get("Model hash", "")
    return Said(
        tool="A1111", prompt=parameters.prompt, negative=parameters.negative, base=base, numbers=notes.numbers,
        unused=tuple(notes.unused),
    )  # fmt: skip


def _strength(notes: Notes, name: str, value: str, *, twice: bool) -> None:
    """Of the second pass, or of a picture that it started from and that is not here."""
    if twice:
        notes.number("upscale_strength", name, value, most=1)
    else:
        notes.leave(name, f"{value} (of another picture that it started from: --image)")
