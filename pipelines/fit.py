"""Whether an adapter file is for the pictures of a base, as its header says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from studio.errors import DoesNotFit
from studio.families import FAMILIES, Base

if TYPE_CHECKING:
    from studio.files import AdapterFile

__all__ = ["check_fit"]

# the factor of a pair that reads the text: keys of diffusers, PEFT and kohya files
_READS_TEXT: Final = re.compile(r"attn2[._]to_[kv]\.(lora_down|lora_A|lora\.down)(\.\w+)?\.weight$")


def check_fit(base: Base, found: AdapterFile) -> None:
    """Checks that an adapter is for pictures, and was made for text vectors as wide as this base's.

    Args:
        base: which shall draw with it. found: what its header says.

    Raises:
        DoesNotFit: it is for a language model, or it was not.
    """
    if found.family == "llm" or "tokenizer" in found.facts:
        raise DoesNotFit(
            f"{found.file} is an adapter for a language model, and {base.id} draws pictures: write with it on "
            "the base that it was trained on (studio complete)"
        )
    here = getattr(base.pipe.components[base.family.denoiser].config, "cross_attention_dim", None)
    wide = {shape[1] for key, (_, shape) in found.tensors.items() if _READS_TEXT.search(key) and len(shape) == 2}
    if isinstance(here, int) and len(wide) == 1 and here not in wide:
        title = FAMILIES[found.family].title if found.family in FAMILIES else found.family_title
        family = f", as {title} has it" if title else ""
        raise DoesNotFit(
            f"{found.file} was made for text of width {wide.pop()}{family}, and {base.id} has width {here}: "
            "load it on the base that it was trained on"
        )
