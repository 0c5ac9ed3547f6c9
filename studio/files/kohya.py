"""kohya's single file, which A1111 and ComfyUI read too: ``lora_unet_<path with underscores>.lora_down.weight``.

The path cannot be told from the flattened name by a rule ("to_q" has an underscore of its own); it is looked up among
the model's layers. Beside each pair stands ``alpha``, a number; without it alpha = rank. Methods other than LoRA are
spelled as LyCORIS does. A text encoder's names have ``text_model`` in them, whatever the library's version.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from studio.adapters.sites.parameter import BARE
from studio.errors import DoesNotFit
from studio.files.format import FORMATS, Format, Saved, Source
from studio.files.header import write_tensors
from studio.files.names import Names, is_flat
from studio.files.spelling import ALIASES, is_part

__all__ = ["KOHYA", "without_core"]


def _split(key: str) -> tuple[str, str] | None:
    module, _, part = key.partition(".")
    part = ALIASES.get(part, part)
    return (module, part) if is_part(part) else None


def _settings(source: Source, method: str, component: str) -> None:
    return None  # the tensors say everything


def _check(saved: Saved) -> None:
    if not saved.config.adapter.foreign.lycoris_tensors:
        raise DoesNotFit(
            f"neither kohya's tools nor LyCORIS have {type(saved.config).__name__}; save with format='diffusers'"
        )
    for path, site in saved.sites.items():
        if site.kind in BARE:
            raise DoesNotFit(f"{path} is a bare parameter, which kohya's format has not; save with format='diffusers'")
    flat = Counter(saved.names.flat(path) for path in saved.names.paths)
    for path in saved.sites:
        if flat[saved.names.flat(path)] > 1:
            raise DoesNotFit(
                f"kohya's name for the layer {path}, {saved.names.flat(path)}, is also that of another layer; save "
                "with format='diffusers'"
            )


def _write(file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str], saved: Saved) -> None:
    write_tensors(file, tensors, metadata)


def without_core(core: Tensor, down: Tensor) -> Tensor:
    """Works the middle tensor of a Tucker-decomposed LoCon into ``down``.

    ``ΔW[p,q,h,w] = Σ_ij up[p,i] core[i,j,h,w] down[j,q]``, hence ``down'[i,q,h,w] = Σ_j core[i,j,h,w] down[j,q]``.

    Args:
        core: ``lora_mid.weight``, ``(r, r, kh, kw)``. down: ``lora_down.weight``, ``(r, in, 1, 1)``.
    """
    return torch.einsum("ij...,jq->iq...", core.float(), down.flatten(1).float())


KOHYA: Final = FORMATS.add(
    "kohya",
    Format(
        name="kohya",
        title="kohya file",
        dialect="lycoris",
        owns=is_flat,
        split=_split,
        find=Names.find_flat,
        spell=Names.flat,
        settings=_settings,
        write=_write,
        check=_check,
        way=lambda foreign: foreign.lycoris_way,
    ),
)
