r"""Words that count more or less, by their encoders' states: A1111's rule.

With ``z`` the states ``(L, D)`` of one prompt (of one chunk, where it is read in chunks) and ``w`` the weight of each
token, 1 for those that are no part of the text::

    z'_{ij}  = w_i z_{ij}
    z''_{ij} = z'_{ij} · mean(z) / mean(z')        the means over all tokens that the denoiser reads, and all D

Each encoder's states are weighed by themselves; a pooled vector is not. Where the mean is nothing beside the states, as
behind a norm without a bias, there is none to keep, and ``z'`` is taken.

References:
    AUTOMATIC1111: stable-diffusion-webui, 2022, https://github.com/AUTOMATIC1111/stable-diffusion-webui ("Original"
    is its name for this rule).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import torch
from torch import Tensor

from studio.device import has_dtype
from studio.errors import DoesNotFit
from studio.families.conditioning import Conditioning
from studio.families.words import Prompts, Words

__all__ = ["emphasised", "token_weights", "weighed"]

ROUNDING: Final = 1e-7  # of a mean in float32


def emphasised(states: Tensor, weights: Tensor, mask: Tensor | None = None) -> Tensor:
    """Returns states, weighed; a row whose weights are all 1 stays as it is, to the bit.

    Args:
        states: of an encoder, ``(B, L, D)``.
        weights: of each token, ``(B, L)``.
        mask: which tokens count, bool ``(B, L)``; None: all of them.

    Example:
        >>> emphasised(torch.tensor([[[1.0], [3.0]]]), torch.tensor([[1.0, 2.0]])).flatten().tolist()
        [0.571..., 3.428...]
    """
    weights = weights.to(states.device)
    if bool((weights == 1).all()):
        return states
    # the mean of states is small beside them: its last bits are those of the ratio
    exact = torch.float64 if has_dtype(torch.float64, states.device) else torch.float32
    plain = states.to(exact)
    changed = plain * weights.to(exact)[..., None]
    counts = torch.ones_like(weights, dtype=exact) if mask is None else mask.to(exact)
    before, after, size = ((one * counts[..., None]).sum(dim=(1, 2)) for one in (plain, changed, plain.abs()))
    ratio = torch.where(torch.minimum(before.abs(), after.abs()) <= ROUNDING * size, 1.0, before / after)
    touched = (weights != 1).any(dim=1)[:, None, None] & (counts != 0)[..., None]
    return torch.where(touched, (changed * ratio[:, None, None]).to(states.dtype), states)


def token_weights(tokenizer: Any, prompts: Prompts, length: int, *, before: str = "", lower: bool = False) -> Tensor:
    """Returns the weight of each token of prompts that are read in one piece, fp32 ``(B, L)``.

    Args:
        tokenizer: the encoder's.
        prompts: B prompts.
        length: L, up to which they are filled up.
        before: what the encoder is told in front of each.
        lower: whether it reads them in lower case and without blanks around.

    Raises:
        DoesNotFit: the tokenizer does not say which characters a token is of.
    """
    rows = [_row(tokenizer, prompt, length, before, lower) for prompt in prompts]
    return torch.tensor(rows, device="cpu")


def _row(tokenizer: Any, prompt: str | Words, length: int, before: str, lower: bool) -> list[float]:
    if not isinstance(prompt, Words) or not prompt.weighed:
        return [1.0] * length
    if not getattr(tokenizer, "is_fast", False):
        raise DoesNotFit(
            f"the prompt {str(prompt)!r} has weights, and the {type(tokenizer).__name__} of this base does not say "
            "which characters a token is of; take the weights out"
        )
    letters = [(letter, weight) for text, weight in prompt.pieces for letter in (text.lower() if lower else text)]
    if lower:
        while letters and letters[0][0].isspace():
            letters.pop(0)
    text = before + "".join(letter for letter, _ in letters)
    by_letter = [1.0] * len(before) + [weight for _, weight in letters]
    read = tokenizer(text, padding="max_length", max_length=length, truncation=True, return_offsets_mapping=True)
    # the last character decides: a token may begin with the blank in front of its word
    return [by_letter[end - 1] if end > start else 1.0 for start, end in read["offset_mapping"]]


def weighed(conditioning: Conditioning, weights: Tensor) -> Conditioning:
    """Returns encoded prompts with their tokens weighed.

    Args:
        conditioning: B prompts of L tokens.
        weights: of each token, ``(B, L)``.
    """
    return dataclasses.replace(
        conditioning, tokens=emphasised(conditioning.tokens, weights, conditioning.mask)
    )  # fmt: skip
