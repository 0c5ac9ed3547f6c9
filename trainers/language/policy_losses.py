r"""What a model learns from rewards for its own answers: group relative policy optimisation.

References:
    | DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models (Shao et al., 2024),
      arXiv:2402.03300, section 4.1
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

__all__ = ["LEAST", "advantages", "grpo"]

LEAST: Final = 1e-4
"""What is added to a group's deviation, so that equal rewards divide nothing by nothing."""


def advantages(rewards: Tensor) -> Tensor:
    """Returns how much better than its group each answer is: ``(r − mean(r)) / (std(r) + 1e-4)``.

    Args:
        rewards: of the G answers of each of B groups ``(B, G)``; std is that of a sample of G. Equal ones give 0.

    Example:
        >>> [round(one, 3) for one in advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0]])).tolist()[0]]
        [0.866, -0.866, -0.866, 0.866]
        >>> advantages(torch.ones(1, 3)).tolist()
        [[0.0, 0.0, 0.0]]
    """
    off = rewards - rewards.mean(1, keepdim=True)
    equal = (rewards == rewards[:, :1]).all(1, keepdim=True)  # a mean of equal numbers may be off by a last bit
    return torch.where(equal, 0.0, off / (rewards.std(1, keepdim=True) + LEAST))


def grpo(
    now: Tensor, drawn: Tensor, reference: Tensor, advantage: Tensor, clip: float, beta: float
) -> tuple[Tensor, Tensor]:  # fmt: skip
    r"""Returns the loss of each token ``(N,)``, and the part of it that is the divergence, without β::

        −min(q A, clip(q, 1 − ε, 1 + ε) A) + β (exp(d) − d − 1)
        with q = exp(now − drawn) and d = reference − now

    The second term is an estimate of KL(π‖ρ) that is never below 0.

    Args:
        now: ``log π`` of the tokens ``(N,)``.
        drawn: the same ``(N,)`` when they were drawn, without a gradient.
        reference: ``log ρ`` of the tokens ``(N,)``.
        advantage: A of the answer that each token is of, ``(N,)``.
        clip: ε. beta: β.

    Example:
        >>> zero = torch.zeros(1)
        >>> loss, off = grpo(zero, zero, zero, torch.tensor([2.0]), 0.2, 0.04)
        >>> loss.item(), off.item()
        (-2.0, 0.0)
    """
    ratio = (now - drawn).exp()
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    apart = reference - now
    off = apart.exp() - apart - 1
    return -gain + beta * off, off
