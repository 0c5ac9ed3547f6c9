"""Whether a text encoder reads prompts whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from studio.errors import DoesNotFit
from studio.families.words import Prompts, texts

__all__ = ["check_chat", "check_tokens"]


def check_tokens(tokenizer: Any, prompts: Prompts, length: int | None = None) -> None:
    """Checks that a text encoder reads prompts whole; nothing is encoded.

    Args:
        tokenizer: the encoder's.
        prompts: the prompts.
        length: the most tokens; None: what the tokenizer says.

    Raises:
        DoesNotFit: a prompt is longer; what would have been cut off is named.
    """
    length = tokenizer.model_max_length if length is None else length
    for prompt in texts(prompts):
        ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
        if len(ids) > length:
            rest = tokenizer.decode(ids[length - 1 : -1]).strip()
            raise DoesNotFit(
                f"the prompt {_short(prompt)} has {len(ids)} tokens and this base reads {length}; shorten it "
                f"(the part {_short(rest)} would be lost)"
            )


def check_chat(tokenizer: Any, prompts: Prompts, written: Sequence[str], length: int) -> None:
    """As :func:`check_tokens`, of prompts that are read inside a chat template.

    Args:
        tokenizer: the encoder's.
        prompts: the prompts.
        written: what the template makes of each.
        length: the most tokens, the template's included.

    Raises:
        DoesNotFit: a prompt is longer.
    """
    for prompt, text in zip(texts(prompts), written, strict=True):
        size = len(tokenizer(text, truncation=False, verbose=False).input_ids)
        if size > length:
            raise DoesNotFit(
                f"the prompt {_short(prompt)} has {size} tokens with what is told the text encoder beside it, and this "
                f"base reads {length}; shorten it by {size - length}"
            )


def _short(text: str) -> str:
    return repr(text if len(text) <= 200 else f"{text[:200]}...")
