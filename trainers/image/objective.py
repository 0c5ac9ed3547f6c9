r"""Noise, targets and loss weights of diffusion training, as functions of the noise schedule.

With :math:`\bar\alpha_t` the schedule's cumulative product, ``x`` the latents and ``n`` standard normal noise::

    noisy    x_t = √ᾱ x + √(1−ᾱ) n
    snr      ᾱ / (1−ᾱ)
    target   ε: n          v: √ᾱ n − √(1−ᾱ) x          sample: x

Let ``e`` be the error of the picture that a prediction implies. The squared error of the prediction itself is
``snr · e²`` for ε, ``(snr + 1) · e²`` for v and ``e²`` for sample. So a weighting is given once, as the weight
``ω(snr)`` of ``e²``, and the weight of the prediction's error is ω divided by that factor: min-SNR, ω = min(snr, γ),
becomes min(snr, γ)/snr for ε and min(snr, γ)/(snr + 1) for v. Any weighting is thereby right for every prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from studio.errors import BadConfig, DoesNotFit
from studio.registry import Registry

__all__ = ["PREDICTIONS", "WEIGHTINGS", "Objective", "Prediction", "noisy", "row_losses", "snr_of"]

SMALLEST_SNR: Final = 1e-8  # a schedule that ends in pure noise has snr = 0 there, and ε weights divide by it


@dataclass(frozen=True)
class Prediction:
    """What a denoiser is trained to predict.

    Args:
        target: ``(latents, noise, ᾱ of each row, shaped to broadcast) -> target``.
        factor: ``snr -> squared error of the prediction per squared error of the picture``.
    """

    target: Callable[[Tensor, Tensor, Tensor], Tensor]
    factor: Callable[[Tensor], Tensor]


PREDICTIONS: Final[Mapping[str, Prediction]] = {
    "epsilon": Prediction(lambda x, n, a: n, lambda snr: snr.clamp_min(SMALLEST_SNR)),
    "v_prediction": Prediction(lambda x, n, a: a.sqrt() * n - (1 - a).sqrt() * x, lambda snr: snr + 1),
    "sample": Prediction(lambda x, n, a: x, torch.ones_like),
}
"""diffusers' ``prediction_type`` -> target and factor."""

Weighting = Callable[[Tensor, Callable[[Tensor], Tensor], float], Tensor]
WEIGHTINGS: Final[Registry[Weighting]] = Registry("loss weighting")
"""name -> ``(snr, factor, γ) -> weight of each row's squared prediction error``."""


@WEIGHTINGS.register("none")
def unweighted(snr: Tensor, factor: Callable[[Tensor], Tensor], gamma: float) -> Tensor:
    """1: the plain squared error of the prediction."""
    return torch.ones_like(snr)


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


def snr_of(alphas: Tensor) -> Tensor:
    """Returns the signal-to-noise ratio ``ᾱ / (1 − ᾱ)`` of each timestep.

    Args:
        alphas: ᾱ of each, ``(T,)``.

    Example:
        >>> snr_of(torch.tensor([0.5, 0.0])).tolist()
        [1.0, 0.0]
    """
    return alphas / (1 - alphas)


def noisy(latents: Tensor, noise: Tensor, alphas: Tensor) -> Tensor:
    """Returns ``√ᾱ x + √(1−ᾱ) n``, ``(B, C, h, w)``.

    Args:
        latents: x, ``(B, C, h, w)``.
        noise: n, ``(B, C, h, w)``.
        alphas: ᾱ of each row, ``(B, 1, 1, 1)``.
    """
    return alphas.sqrt() * latents + (1 - alphas).sqrt() * noise


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


@dataclass(frozen=True)
class Objective:
    """The objective of one base: its noise schedule, what it predicts, and how errors are weighted.

    Args:
        alphas: ᾱ of every timestep, ``(T,)``.
        prediction: a key of :data:`PREDICTIONS`.
        weights: weight of every timestep's error, ``(T,)``.
    """

    alphas: Tensor
    prediction: str
    weights: Tensor

    @classmethod
    def of(cls, scheduler: Any, *, weighting: str = "none", gamma: float = 5.0, device: Any = None) -> Objective:
        """Reads the schedule of a diffusers scheduler.

        Args:
            scheduler: one with ``alphas_cumprod`` and a ``prediction_type``.
            weighting: a name in :data:`WEIGHTINGS`.
            gamma: γ of min-SNR, > 0.
            device: where the tables shall be.

        Raises:
            BadConfig: γ is not positive.
            UnknownName: no such weighting.
            DoesNotFit: the scheduler has no ᾱ, or predicts something else.
        """
        if not gamma > 0:
            raise BadConfig(f"gamma={gamma!r}: γ of min-SNR must be above 0 (5 is usual)")
        alphas = getattr(scheduler, "alphas_cumprod", None)
        name = type(scheduler).__name__
        if alphas is None:
            raise DoesNotFit(f"{name} has no table of ᾱ (alphas_cumprod); this objective trains ε and v bases")
        prediction = scheduler.config.prediction_type
        if prediction not in PREDICTIONS:
            raise DoesNotFit(f"{name} predicts {prediction!r}; known are {', '.join(PREDICTIONS)}")
        return cls.from_alphas(alphas, prediction, weighting=weighting, gamma=gamma, device=device)

    @classmethod
    def from_alphas(
        cls, alphas: Tensor, prediction: str, *, weighting: str = "none", gamma: float = 5.0, device: Any = None
    ) -> Objective:
        """Makes the objective from ᾱ ``(T,)``; the tables are computed in float64 and kept in fp32."""
        snr = snr_of(alphas.double())
        weights = WEIGHTINGS[weighting](snr, PREDICTIONS[prediction].factor, gamma)
        return cls(alphas.float().to(device), prediction, weights.float().to(device))

    @property
    def length(self) -> int:
        """T, the number of timesteps."""
        return len(self.alphas)

    def noisy(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Returns ``x_t`` for each row, ``(B, C, h, w)``.

        Args:
            latents: x, ``(B, C, h, w)``.
            noise: n, ``(B, C, h, w)``.
            timesteps: t, int64 ``(B,)``.
        """
        return noisy(latents, noise, self._rows(timesteps, latents))

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Returns what the denoiser shall predict for each row, ``(B, C, h, w)``.

        Args:
            latents: x, ``(B, C, h, w)``.
            noise: n, ``(B, C, h, w)``.
            timesteps: t, int64 ``(B,)``.
        """
        return PREDICTIONS[self.prediction].target(latents, noise, self._rows(timesteps, latents))

    def losses(self, prediction: Tensor, target: Tensor, timesteps: Tensor) -> Tensor:
        """Returns the weighted squared error of each row, ``(B,)``.

        Args:
            prediction: what the denoiser said, ``(B, C, h, w)``.
            target: what it should have said, ``(B, C, h, w)``.
            timesteps: t, int64 ``(B,)``.
        """
        return row_losses(prediction, target, self.weights[timesteps])

    def _rows(self, timesteps: Tensor, like: Tensor) -> Tensor:
        return self.alphas[timesteps].view(-1, *[1] * (like.dim() - 1))
