"""Answers behind their prompts, and how likely a causal language model finds them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from studio.datasets.preferences import Answer
from studio.families.language import LanguageBase
from studio.trainers.language.texts import IGNORED, TokenRow, batch, encode

__all__ = ["answer_logits", "encode_answer", "exchanged", "log_chances", "sums"]


def encode_answer(answer: Answer, base: LanguageBase, length: int) -> TokenRow:
    """Turns an answer and its prompt into token numbers, of which those of the answer count, its end included.

    Args:
        answer: the answer. base: whose template and tokenizer it is. length: tokens at most.

    Raises:
        BadFile: as :func:`studio.trainers.language.texts.render`.
    """
    return encode(answer.whole, base, length, answer.given)


def exchanged(row: TokenRow, other: TokenRow, length: int) -> TokenRow:
    """Returns the answer of another row behind the prompt of a row.

    Args:
        row: whose prompt it is. other: whose answer it is. length: tokens at most.
    """
    ends, begins = row.learned.index(True), other.learned.index(True)
    tokens = (*row.tokens[:ends], *other.tokens[begins:])
    learned = (*row.learned[:ends], *other.learned[begins:])
    return TokenRow(row.sample, tokens[:length], learned[:length], max(len(tokens) - length, 0))


def answer_logits(model: Any, rows: Sequence[TokenRow], pad: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the logits of all tokens that count.

    Args:
        model: a causal language model. rows: B answers, N tokens of which count. pad: the token that fills up.

    Returns:
        Logits ``(N, V)`` in fp32, the tokens ``(N,)``, and their places, a bool ``(B, T)``.
    """
    tokens, mask, labels = batch(rows, pad, model.device)
    logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
    # virtual tokens in front have logits too; the last T are those of the text
    logits, wanted = logits[:, -tokens.shape[1] : -1], labels[:, 1:]
    kept = wanted != IGNORED
    return logits[kept].float(), wanted[kept], kept


def log_chances(
    model: Any, rows: Sequence[TokenRow], pad: int, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Returns ``log p`` of every token that counts, ``(N,)`` in fp32, and their places, a bool ``(B, T)``.

    Args:
        model: a causal language model. rows: the answers. pad: the token that fills up.
        temperature: logits are divided by it, as where answers are drawn.
    """
    logits, wanted, places = answer_logits(model, rows, pad)
    return -F.cross_entropy(logits / temperature, wanted, reduction="none"), places


def sums(values: Tensor, places: Tensor) -> Tensor:
    """Returns the sum of values per row, ``(B,)``.

    Args:
        values: of tokens ``(N,)``. places: where they stand, a bool ``(B, T)``.

    Example:
        >>> sums(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([[True, False], [False, False], [True, True]]))
        tensor([1., 0., 6.])
    """
    return torch.zeros(places.shape, dtype=values.dtype, device=values.device).masked_scatter(places, values).sum(1)
