"""What a classifier reads, and its logits: one answer to a text or to a pair of texts, or one to each word."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from studio.families.language.base import LanguageBase

__all__ = ["Reading", "label_logits", "model_inputs", "read_texts", "read_words"]


@dataclass(frozen=True)
class Reading:
    """What a classifier reads, as numbers.

    Args:
        tokens: the token numbers, with the tokenizer's marks.
        types: for every token, of which text it is: 0 or 1.
        places: the tokens by which words are answered, one for each word that is left; empty for whole texts.
        lost: how many tokens were cut off.
    """

    tokens: tuple[int, ...]
    types: tuple[int, ...]
    places: tuple[int, ...] = ()
    lost: int = 0


def read_texts(base: LanguageBase, texts: Sequence[str], length: int) -> Reading:
    """Turns a text, or a pair of them, into numbers; of what is too long, the longer text loses its end.

    Args:
        base: whose tokenizer counts. texts: one or two. length: tokens at most, the marks included.
    """
    whole = base.tokenizer(*texts, verbose=False)["input_ids"]
    cut: dict[str, Any] = {"truncation": "longest_first", "max_length": length} if len(whole) > length else {}
    coded = base.tokenizer(*texts, verbose=False, return_token_type_ids=True, **cut)
    tokens = tuple(coded["input_ids"])
    return Reading(tokens, tuple(coded["token_type_ids"]), lost=len(whole) - len(tokens))


def read_words(base: LanguageBase, words: Sequence[str], length: int) -> Reading:
    """Turns words with blanks between them into numbers; a word is answered by its first token.

    A word of which the tokenizer leaves nothing is answered by the token behind it.

    Args:
        base: whose tokenizer counts. words: at least one. length: tokens at most; words behind them have no place.
    """
    text, begins = "", []
    for word in words:
        begins.append(len(text) + bool(text))
        text = f"{text} {word}" if text else word
    coded = base.tokenizer(text, return_offsets_mapping=True, return_token_type_ids=True, verbose=False)
    ends = [int(end) for _, end in coded["offset_mapping"]]
    tokens, kept = list(coded["input_ids"]), min(len(ends), length)
    found = [next((place for place, end in enumerate(ends) if end > begin), len(ends) - 1) for begin in begins]
    return Reading(
        tuple(tokens[:kept]), tuple(coded["token_type_ids"][:kept]),
        tuple(place for place in found if place < kept), len(tokens) - kept,
    )  # fmt: skip


def model_inputs(base: LanguageBase, readings: Sequence[Reading]) -> dict[str, Any]:
    """Returns what a model takes of readings, by the names of its arguments: tokens and masks, int64 ``(B, T)`` each.

    A model that writes, too, shall keep nothing for what would come next.

    Args:
        base: the model. readings: B of them, padded together on the right.
    """
    device, length = base.model.device, max(len(one.tokens) for one in readings)
    rows = [[*one.tokens, *[base.pad] * (length - len(one.tokens))] for one in readings]
    mask = [[1] * len(one.tokens) + [0] * (length - len(one.tokens)) for one in readings]
    given: dict[str, Any] = {
        "input_ids": torch.tensor(rows, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }
    if int(getattr(base.model.config, "type_vocab_size", None) or 0) > 1:  # the model knows which text a token is of
        types = [[*one.types, *[0] * (length - len(one.types))] for one in readings]
        given["token_type_ids"] = torch.tensor(types, device=device)
    if "use_cache" in inspect.signature(base.model.forward).parameters:
        given["use_cache"] = False
    return given


def label_logits(base: LanguageBase, readings: Sequence[Reading]) -> Tensor:
    """Returns the logits of all answers to readings, ``(N, C)`` in fp32: one of each text, or one of each word.

    Args:
        base: a classifier of C labels. readings: B of them, padded together on the right.
    """
    logits = base.model(**model_inputs(base, readings)).logits.float()
    if base.kind.name != "token-classifier":
        return logits  # type: ignore[no-any-return]
    rows_of = [row for row, one in enumerate(readings) for _ in one.places]
    return logits[rows_of, [place for one in readings for place in one.places]]  # type: ignore[no-any-return]
