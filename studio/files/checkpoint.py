"""Telling a whole base, or its denoiser, from an adapter: by the names and shapes of its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from studio.families import FAMILIES
from studio.families.native import Clues
from studio.files.components import NATIVE

__all__ = ["checkpoint_title"]

_DENOISER: Final = NATIVE[1]
_BESIDE: Final = ("first_stage_model.", "cond_stage_model.", "conditioner.embedders.")
_END: Final = ".weight"


def checkpoint_title(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Returns the title of the family of a checkpoint, ``""`` for one of no known family, None for what is none.

    Args:
        shapes: of the file's tensors, by name.

    Example:
        >>> checkpoint_title({"joint_blocks.0.context_block.adaLN_modulation.1.bias": (9216,)})
        'Stable Diffusion 3'
    """
    own = {name.removeprefix(_DENOISER): shape for name, shape in shapes.items()}
    known = (row for row in FAMILIES.values() if row.single is not None and row.single.tells(own))
    family = next(known, None)
    if family is None and not any(name.startswith((_DENOISER, *_BESIDE)) for name in shapes):
        return None
    if family is None:  # a part of one: by the marks of its adapters
        clues = Clues({
            name.removesuffix(_END).replace(".", "_"): (shape[1], shape[0])
            for name, shape in own.items() if name.endswith(_END) and len(shape) > 1 and not name.startswith(_BESIDE)
        })  # fmt: skip
        family = next((row for row in FAMILIES.values() if row.marks(clues)), None)
    return "" if family is None else family.title
