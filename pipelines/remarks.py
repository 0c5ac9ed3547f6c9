"""What a caller says and the drawing does not heed: each in a sentence, so that it is not silently without effect."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from studio.shown import shown

__all__ = ["Remark", "remarks"]

# (word:1.2), ((word)), [word:0.5]: weights of A1111, ComfyUI and InvokeAI
_EMPHASIS: Final = re.compile(r"[(\[][^()\[\]<>]*:\s*\d*\.?\d+\s*[)\]]|\({2,}[^()]+\){2,}")


class Remark(UserWarning):
    """Something that was asked for has no effect."""


def remarks(prompts: Sequence[str], *, negative: str | None, guidance: float) -> list[str]:
    """Returns a sentence for each thing that has no effect.

    Args:
        prompts: the prompts.
        negative: what guidance leads away from.
        guidance: the guidance scale.

    Example:
        >>> remarks(["a (red:1.3) dog"], negative=None, guidance=5.0)
        ["(red:1.3) in 'a (red:1.3) dog' is drawn as words: weights in a prompt are not read here"]
        >>> remarks(["a dog (small)"], negative="blurry", guidance=1.0)
        ["the negative prompt 'blurry' has no effect: guidance 1 is the prompt alone, and more leads away from it"]
    """
    said = []
    for prompt in dict.fromkeys([*prompts, negative or ""]):
        found = _EMPHASIS.search(prompt)
        if found:
            said.append(
                f"{shown(found[0])} in {shown(repr(prompt))} is drawn as words: weights in a prompt are not read here"
            )
    if negative and guidance == 1:
        what = f"the negative prompt {shown(repr(negative))}"
        said.append(f"{what} has no effect: guidance 1 is the prompt alone, and more leads away from it")
    return said
