"""Reading prompts with CLIP's text encoders."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from studio.errors import DoesNotFit

__all__ = ["CLIP_ATTENTION", "CLIP_FEEDFORWARD", "check_tokens"]

CLIP_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
CLIP_FEEDFORWARD = ("fc1", "fc2")


def check_tokens(tokenizer: Any, prompts: Sequence[str], length: int | None = None) -> None:
    """Checks that a text encoder reads prompts whole; nothing is encoded.

    Args:
        tokenizer: the encoder's.
        prompts: the prompts.
        length: the most tokens; None: what the tokenizer says.

    Raises:
        DoesNotFit: a prompt is longer; what would have been cut off is named.
    """
    length = tokenizer.model_max_length if length is None else length
    for prompt in prompts:
        ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
        if len(ids) > length:
            rest = tokenizer.decode(ids[length - 1 : -1]).strip()
            raise DoesNotFit(
                f"the prompt {prompt!r} has {len(ids)} tokens and this base reads {length}; shorten it "
                f"(the part {rest!r} would be lost)"
            )
