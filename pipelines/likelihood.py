"""How likely a language model says each of some answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from studio.errors import DoesNotFit
from studio.families.language import LanguageBase
from studio.shown import short

__all__ = ["answer_likelihoods"]


@torch.no_grad()
def answer_likelihoods(
    base: LanguageBase, prompts: Sequence[str], answers: Sequence[str], *, chat: bool, batch_size: int
) -> Tensor:  # fmt: skip
    """Returns ``log p(answer, end | prompt)``, the sum over the tokens of the answer and its end, ``(N, A)`` in fp64.

    Args:
        base: a causal language model, or a sequence-to-sequence one, in evaluation mode.
        prompts: N texts as the model reads them, a template's marks included.
        answers: A answers.
        chat: whether the prompts have a template's marks.
        batch_size: answers that are computed together.

    Raises:
        DoesNotFit: a prompt that leaves no room for an answer in the context.
    """
    apart = bool(base.model.config.is_encoder_decoder)
    rows = [_pair(base, prompt, answer) if apart else _row(base, prompt, answer, chat)
            for prompt in prompts for answer in answers]  # fmt: skip
    for place, (read, said) in enumerate(rows):
        if max(len(read), len(said)) > base.context:
            raise DoesNotFit(
                f"the prompt {short(prompts[place // len(answers)])} and the answer "
                f"{answers[place % len(answers)]!r} have more tokens than {base.id} reads ({base.context}); shorten it"
            )
    found: list[Tensor] = []
    for begin in range(0, len(rows), batch_size):
        found.append(_sums(base, rows[begin : begin + batch_size], apart))
    return torch.cat(found).reshape(len(prompts), len(answers))


Row = tuple[list[int], list[int]]
"""What is read, and what is to be said: of a causal model the same tokens again, -100 where they are only read."""


def _row(base: LanguageBase, prompt: str, answer: str, chat: bool) -> Row:
    tokens, places = base.tokens(f"{prompt}{answer}{(*base.end_marks, '')[0]}", chat=chat)
    return tokens, [token if end > len(prompt) else -100 for token, (_, end) in zip(tokens, places, strict=True)]


def _pair(base: LanguageBase, prompt: str, answer: str) -> Row:
    return base.reads(prompt), base.says(answer)


def _sums(base: LanguageBase, rows: Sequence[Row], apart: bool) -> Tensor:
    """The sums of a batch, filled up on the right."""
    model, device = base.model, base.model.device
    read, said = (_filled([row[side] for row in rows], fill).to(device) for side, fill in ((0, base.pad), (1, -100)))
    sizes = torch.tensor([len(row[0]) for row in rows], device=device)
    mask = (torch.arange(read.shape[1], device=device) < sizes[:, None]).long()
    if apart:
        logits = model(input_ids=read, attention_mask=mask, labels=said, use_cache=False).logits
    else:  # virtual tokens in front have logits too; the last T are those of the text
        logits = model(input_ids=read, attention_mask=mask, use_cache=False).logits[:, -read.shape[1] : -1]
        said = said[:, 1:]
    chances = torch.log_softmax(logits.double(), -1)
    kept = said != -100
    found = chances.gather(-1, said.clamp_min(0)[..., None])[..., 0]
    return torch.where(kept, found, torch.zeros_like(found)).sum(-1).cpu()


def _filled(rows: Sequence[Sequence[int]], fill: int) -> Tensor:
    length = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (length - len(row))] for row in rows])
