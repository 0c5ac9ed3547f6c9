r"""Loss weights of the two processes' training, and the objective of one base.

Noise and targets are the process's (:mod:`studio.families.process`): a noisy picture is ``x_t = α x + σ n``. With ``e``
the error of the picture that a prediction implies, the squared error of the prediction itself is ``factor · e²``:
``snr · e²`` for ε, ``(snr + 1) · e²`` for v, ``e²`` for sample and ``e²/σ²`` for a flow. So a weighting is given once,
as the weight ``ω(snr)`` of ``e²``, and the weight of the prediction's error is ω divided by that factor: min-SNR,
ω = min(snr, γ), becomes min(snr, γ)/snr for ε and min(snr, γ)/(snr + 1) for v. Any weighting is thereby right for every
prediction.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from studio.errors import BadConfig, DoesNotFit
from studio.families.process import PREDICTIONS, SMALLEST_SNR, Flow, Process
from studio.registry import Registry

__all__ = ["DENSITIES", "WEIGHTINGS", "Objective", "row_losses"]

Weighting = Callable[[Tensor, Callable[[Tensor], Tensor], float], Tensor]
WEIGHTINGS: Final[Registry[Weighting]] = Registry("loss weighting")
"""name -> ``(snr, factor, γ) -> weight of each row's squared prediction error``."""

NOT_FOR_FLOWS: Final = ("min-snr", "min-snr-offset", "debiased")  # their γ and limits are those of ε and v schedules


@WEIGHTINGS.register("none")
def unweighted(snr: Tensor, factor: Callable[[Tensor], Tensor], gamma: float) -> Tensor:
    """1: the plain squared error of the prediction."""
    return torch.ones_like(snr)


@WEIGHTINGS.register("picture")
def picture(snr: Tensor, factor: Callable[[Tensor], Tensor], gamma: float) -> Tensor:
    """``1 / factor``: the squared error of the picture that the prediction implies; for a flow, σ² times its error.

    References:
        | what diffusers' script for Stable Diffusion 3 does under the name of preconditioned outputs
    """
    return 1 / factor(snr)


@WEIGHTINGS.register("min-snr")
def min_snr(snr: Tensor, factor: Callable[[Tensor], Tensor], gamma: float) -> Tensor:
    """``min(snr, γ) / factor``: little weight for steps with almost no noise left.

    References:
        | Efficient Diffusion Training via Min-SNR Weighting Strategy (Hang et al., 2023), arXiv:2303.09556
    """
    return snr.clamp(SMALLEST_SNR, gamma) / factor(snr)


@WEIGHTINGS.register("min-snr-offset")
def min_snr_offset(snr: Tensor, factor: Callable[[Tensor], Tensor], gamma: float) -> Tensor:
    """``1.5 · (0.3 + min(snr, 3)) / factor``, whatever γ is: min-SNR that does not starve the noisiest steps.

    They decide what a small picture shows. The embedded base was trained with it (v: ``1.5 (0.3 + min(snr, 3)) /
    (snr + 1)``). For ε its weight grows like 0.45 / snr there, so it is meant for bases that predict v.
    """
    return 1.5 * (0.3 + snr.clamp(max=3.0)) / factor(snr)


@WEIGHTINGS.register("debiased")
def debiased(snr: Tensor, factor: Callable[[Tensor], Tensor], gamma: float) -> Tensor:
    """``√(min(snr, 1000)) / factor``: for ε this is ``1/√snr``.

    References:
        | Debias the Training of Diffusion Models (Yu et al., 2023), arXiv:2310.08442
    """
    return snr.clamp(SMALLEST_SNR, 1000.0).sqrt() / factor(snr)


DENSITIES: Final[Registry[Callable[[Tensor], Tensor]]] = Registry("density of training times")
"""name -> ``u -> u'``: from numbers evenly spread in [0, 1) to numbers of that density."""


@DENSITIES.register("uniform")
def uniform(u: Tensor) -> Tensor:
    """u: all times alike."""
    return u


@DENSITIES.register("logit-normal")
def logit_normal(u: Tensor) -> Tensor:
    """``1 / (1 + exp(−Φ⁻¹(u)))``: mostly in the middle, where neither the picture nor the noise is plain to see.

    References:
        | Scaling Rectified Flow Transformers for High-Resolution Image Synthesis (Esser et al., 2024), arXiv:2403.03206

    Example:
        >>> [round(value, 3) for value in logit_normal(torch.tensor([0.025, 0.5, 0.975], dtype=torch.float64)).tolist()]
        [0.123, 0.5, 0.877]
    """
    return torch.sigmoid(torch.special.ndtri(u.clamp(1e-9, 1 - 1e-9)))


def row_losses(prediction: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Returns the weighted mean squared error of every row, ``(B,)``, in fp32.

    Args:
        prediction: what the denoiser said, ``(B, C, h, w)``.
        target: what it should have said, ``(B, C, h, w)``.
        weights: of each row, ``(B,)``.

    Example:
        >>> row_losses(torch.ones(2, 1, 2, 2), torch.zeros(2, 1, 2, 2), torch.tensor([1.0, 0.5])).tolist()
        [1.0, 0.5]
    """
    return (prediction.to(target.dtype) - target).square().flatten(1).mean(1) * weights


@dataclass(frozen=True, kw_only=True)
class Objective:
    """The objective of one base: its process, which times are trained, and how errors are weighted.

    Args:
        process: how pictures become noise, and what is predicted.
        weighting: a name in :data:`WEIGHTINGS`.
        gamma: γ of min-SNR, > 0.
        density: a name in :data:`DENSITIES`.
        shift: k of a flow's ``s = k u / (1 + (k−1) u)``, > 0; 1 leaves the density as it is.

    Raises:
        BadConfig: γ or the shift is not positive.
        UnknownName: no such weighting or density.
        DoesNotFit: a weighting that means nothing for a flow, or a shift for what is none.
    """

    process: Process
    weighting: str = "none"
    gamma: float = 5.0
    density: str = "uniform"
    shift: float = 1.0

    def __post_init__(self) -> None:
        flow = isinstance(self.process, Flow)
        WEIGHTINGS[self.weighting], DENSITIES[self.density]
        if not self.gamma > 0:
            raise BadConfig(f"gamma={self.gamma!r}: γ of min-SNR must be above 0 (5 is usual)")
        if not 0 < self.shift < math.inf:
            raise BadConfig(f"shift={self.shift!r}: the shift of a flow's times must be above 0 (1: none, 3 is usual)")
        if flow and self.weighting in NOT_FOR_FLOWS:
            usual = ", ".join(name for name in WEIGHTINGS if name not in NOT_FOR_FLOWS)
            raise DoesNotFit(
                f"weighting={self.weighting!r} is for bases that predict ε or v, and this is a flow: {usual}"
            )
        if not flow and self.shift != 1:
            raise DoesNotFit(f"shift={self.shift!r} is for flows, and this base predicts {self.process.prediction}")

    def timesteps(self, u: Tensor) -> Tensor:
        """Returns the time of each row as the denoiser takes it, ``(B,)``.

        Args:
            u: numbers evenly spread in [0, 1), float64 ``(B,)``.
        """
        return self.process.timesteps(DENSITIES[self.density](u), self.shift)

    def noisy(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Returns ``x_t = α x + σ n`` for each row, ``(B, C, h, w)``.

        Args:
            latents: x, ``(B, C, h, w)``.
            noise: n, ``(B, C, h, w)``.
            timesteps: t, ``(B,)``.
        """
        alpha, sigma = self._mixture(timesteps, latents)
        return alpha * latents + sigma * noise

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Returns what the denoiser shall predict for each row, ``(B, C, h, w)``.

        Args:
            latents: x, ``(B, C, h, w)``.
            noise: n, ``(B, C, h, w)``.
            timesteps: t, ``(B,)``.
        """
        return PREDICTIONS[self.process.prediction].target(latents, noise, *self._mixture(timesteps, latents))

    def weights(self, timesteps: Tensor) -> Tensor:
        """Returns the weight of the squared error at each of the timesteps ``(B,)``, fp32; computed in float64."""
        factor = PREDICTIONS[self.process.prediction].factor
        return WEIGHTINGS[self.weighting](self.process.snr(timesteps), factor, self.gamma).float()

    def losses(self, prediction: Tensor, target: Tensor, timesteps: Tensor) -> Tensor:
        """Returns the weighted squared error of each row, ``(B,)``.

        Args:
            prediction: what the denoiser said, ``(B, C, h, w)``.
            target: what it should have said, ``(B, C, h, w)``.
            timesteps: t, ``(B,)``.
        """
        return row_losses(prediction, target, self.weights(timesteps))

    def _mixture(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        shape = (-1, *[1] * (like.dim() - 1))
        alpha, sigma = self.process.mixture(timesteps)
        return alpha.view(shape), sigma.view(shape)
