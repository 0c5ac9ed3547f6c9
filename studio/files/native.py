"""The single file of ComfyUI, ai-toolkit and others: ``diffusion_model.`` and the names of those who trained the base.

A LoRA's pair is spelled as PEFT does, other methods as LyCORIS does. ``alpha`` stands beside each pair unless it is the
rank everywhere: several readers do not know it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from torch import Tensor

from studio.adapters.sites.parameter import BARE
from studio.errors import DoesNotFit
from studio.files.components import NATIVE as HEADS
from studio.files.diffusers import DIFFUSERS
from studio.files.format import FORMATS, Draft, Format, Named
from studio.files.fused import DOWN, UP, gathered, mixed_ranks
from studio.files.header import write_tensors
from studio.files.names import Names
from studio.files.spelling import part_of

__all__ = ["NATIVE"]

_PAIR: Final = {DOWN: "lora_A.weight", UP: "lora_B.weight"}
_PLAIN: Final = {DOWN, UP, "alpha"}


def _check(draft: Draft) -> None:
    if not draft.config.adapter.lycoris.tensors:
        raise DoesNotFit(
            f"programs that read native names have no {type(draft.config).__name__}; save with format='diffusers'"
        )
    for path, site in draft.sites.items():
        if site.kind in BARE or not draft.names.original(path):
            raise DoesNotFit(
                f"{path} has no name that those who trained its base gave it; save with format='kohya' or 'diffusers'"
            )


def _gather(names: Names, layers: Named) -> Named:
    found = gathered(names, layers, Names.original, "native")
    if any(parts.keys() != _PLAIN for parts in found.values()):
        return found
    follows = all(float(parts["alpha"]) == len(parts[DOWN]) for parts in found.values())
    return {
        name: {_PAIR.get(part, part): one for part, one in parts.items() if part != "alpha" or not follows}
        for name, parts in found.items()
    }


def _write(file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str], draft: Draft) -> None:
    write_tensors(file, tensors, metadata | mixed_ranks(metadata, tensors))


NATIVE: Final = FORMATS.add(
    "native",
    Format(
        name="native",
        title="native file",
        dialect="lycoris",
        owns=lambda key: key.startswith((*HEADS, "text_encoders.")),
        split=part_of,
        find=Names.find_dotted,
        spell=Names.original,
        settings=DIFFUSERS.settings,
        write=_write,
        check=_check,
        gather=_gather,
    ),
)
