r"""What preferences cost: one function per paper, each of a whole batch of pairs or of answers.

``c`` and ``r`` are the chosen and the rejected answer y to a prompt x, ``π`` the model with the adapter and ``ρ`` the
model without it, its reference. A log ratio is ``h(y) = log π(y|x) − log ρ(y|x)``, with the sum of ``log p`` over the
answer's tokens, the end included. σ is the logistic function.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["bradley_terry", "dpo", "ipo", "kto", "orpo"]


def dpo(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    r"""Direct preference optimisation: ``−log σ(β (h(c) − h(r)))``, ``(B,)``; log 2 where nothing has changed yet.

    Args:
        chosen, rejected: h of the two answers ``(B,)``. beta: β > 0.

    References:
        | Direct Preference Optimization: Your Language Model is Secretly a Reward Model (Rafailov et al., 2023),
          arXiv:2305.18290, equation 7

    Example:
        >>> round(float(dpo(torch.zeros(1), torch.zeros(1), 0.1)), 6)
        0.693147
    """
    return -F.logsigmoid(beta * (chosen - rejected))


def ipo(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    r"""Identity preference optimisation: ``(h(c)/|c| − h(r)/|r| − 1/(2β))²``, ``(B,)``.

    Log ratios are means over an answer's tokens: the paper writes sums, under which long answers weigh more, and its
    authors have confirmed to other implementations that they used means.

    Args:
        chosen, rejected: ``h(y)/|y|`` of the two answers ``(B,)``. beta: the paper's τ > 0.

    References:
        | A General Theoretical Paradigm to Understand Learning from Human Preferences (Azar et al., 2023),
          arXiv:2310.12036, equation 17
    """
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def kto(ratio: Tensor, good: Tensor, reference: Tensor, beta: float, desirable: float, undesirable: float) -> Tensor:
    r"""Kahneman-Tversky optimisation, ``(B,)``::

        good answers   λ_D (1 − σ(β (h − z)))
        others         λ_U (1 − σ(β (z − h)))

    Args:
        ratio: h of the answers ``(B,)``. good: whether each is one to give, bool ``(B,)``.
        reference: z, what answers are held against: an estimate of KL(π‖ρ), ``()``, without a gradient.
        beta: β > 0. desirable, undesirable: λ_D and λ_U.

    References:
        | KTO: Model Alignment as Prospect Theoretic Optimization (Ethayarajh et al., 2024), arXiv:2402.01306,
          equation 8
    """
    sign = torch.where(good, 1.0, -1.0).to(ratio.dtype)
    weight = torch.where(good, desirable, undesirable).to(ratio.dtype)
    return weight * (1 - torch.sigmoid(beta * sign * (ratio - reference)))


def orpo(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    r"""Odds ratio preference optimisation, ``(B,)``, which needs no reference::

        −c̄ − β log σ(log(p_c / (1 − p_c)) − log(p_r / (1 − p_r)))    with p = exp(ȳ)

    Args:
        chosen, rejected: c̄ and r̄, the means of ``log π`` over the tokens of the two answers, below 0 ``(B,)``.
        beta: the paper's λ > 0.

    References:
        | ORPO: Monolithic Preference Optimization without Reference Model (Hong, Lee & Thorne, 2024),
          arXiv:2403.07691, equations 4, 6 and 7
    """
    # log(1 − p) by expm1; a mean of 0 would be a certain answer, of infinite odds
    tiny = torch.finfo(chosen.dtype).eps
    odds = [mean - torch.log(-torch.expm1(mean.clamp(max=-tiny))) for mean in (chosen, rejected)]
    return -chosen - beta * F.logsigmoid(odds[0] - odds[1])


def bradley_terry(chosen: Tensor, rejected: Tensor) -> Tensor:
    r"""How little a reward model tells two answers apart: ``−log σ(R(c) − R(r))``, ``(B,)``.

    Args:
        chosen, rejected: their rewards ``(B,)``.

    References:
        | Rank Analysis of Incomplete Block Designs: I. The Method of Paired Comparisons (Bradley & Terry, 1952)
        | Training Language Models to Follow Instructions with Human Feedback (Ouyang et al., 2022), arXiv:2203.02155

    Example:
        >>> round(float(bradley_terry(torch.tensor([2.0]), torch.tensor([1.0]))), 6)
        0.313262
    """
    return -F.logsigmoid(chosen - rejected)
