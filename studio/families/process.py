r"""The two processes: how pictures become noise, and what a denoiser says about it.

With ``x`` the latents and ``n`` standard normal noise, a noisy picture is ``x_t = α x + σ n`` in both::

    diffusion   α = √ᾱ_t       σ = √(1−ᾱ_t)     t = 0, 1, … T−1, ᾱ a table of the scheduler
                ε: n           v: α n − σ x     sample: x
    flow        α = 1 − s      σ = s            t = 1000 s, a number between 0 and 1000
                n − x          (dx/ds, which an Euler step follows)

Let ``e`` be the error of the picture that a prediction implies at ``x_t``. The squared error of the prediction itself
is ``factor · e²``; a loss weighting is given once, as the weight of ``e²``, and is thereby right for every prediction.

References:
    | Denoising Diffusion Probabilistic Models (Ho, Jain, Abbeel, 2020), arXiv:2006.11239
    | Progressive Distillation for Fast Sampling of Diffusion Models (Salimans, Ho, 2022), arXiv:2202.00512
    | Scaling Rectified Flow Transformers for High-Resolution Image Synthesis (Esser et al., 2024), arXiv:2403.03206
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from studio.errors import DoesNotFit

__all__ = ["PREDICTIONS", "SMALLEST_SNR", "Diffusion", "Flow", "Prediction", "Process"]

FLOW: Final = "flow_prediction"
SMALLEST_SNR: Final = 1e-8  # a schedule that ends in pure noise has snr = 0 there, and ε weights divide by it


@dataclass(frozen=True)
class Prediction:
    """What a denoiser is trained to predict.

    Args:
        target: ``(x, n, α, σ) -> target``.
        factor: ``snr -> squared error of the prediction per squared error of the picture``.
        picture: ``(x_t, prediction, α, σ) -> x``, the picture that a prediction implies.
    """

    target: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    factor: Callable[[Tensor], Tensor]
    picture: Callable[[Tensor, Tensor, float, float], Tensor]


PREDICTIONS: Final[Mapping[str, Prediction]] = {
    "epsilon": Prediction(
        lambda x, n, a, s: n,
        lambda snr: snr.clamp_min(SMALLEST_SNR),
        lambda x, p, a, s: (x - s * p) / max(a, SMALLEST_SNR**0.5),
    ),
    "v_prediction": Prediction(lambda x, n, a, s: a * n - s * x, lambda snr: snr + 1, lambda x, p, a, s: a * x - s * p),
    "sample": Prediction(lambda x, n, a, s: x, torch.ones_like, lambda x, p, a, s: p),
    "flow_prediction": Prediction(
        lambda x, n, a, s: n - x, lambda snr: (snr.sqrt() + 1).square(), lambda x, p, a, s: x - s * p
    ),
}
"""diffusers' ``prediction_type`` -> target and factor. The last is the flow's: with α + σ = 1 its factor is 1/σ²."""


class Process(ABC):
    """How the latents of one base become noise.

    Attributes:
        word: what it is called in sentences.
    """

    word: ClassVar[str]

    @property
    @abstractmethod
    def prediction(self) -> str:
        """A key of :data:`PREDICTIONS`."""

    @classmethod
    @abstractmethod
    def of(cls, scheduler: Any, device: Any = None) -> Process:
        """Reads the process of a base from its scheduler.

        Args:
            scheduler: the base's own, a diffusers scheduler.
            device: where tables shall be.

        Raises:
            DoesNotFit: a scheduler of the other process, or a prediction that is not known.
        """

    @classmethod
    @abstractmethod
    def facts(cls, own: Mapping[str, Any], accepted: Collection[str], title: str, shift: float) -> dict[str, Any]:
        """Returns what another scheduler must be told about a base.

        Args:
            own: config of the base's scheduler.
            accepted: the settings that the other one has.
            title: its name, for messages.
            shift: k of ``s = k u / (1 + (k−1) u)`` at the picture's size; 1 for diffusion.

        Raises:
            DoesNotFit: it cannot be told what it must know.
        """

    @abstractmethod
    def timesteps(self, u: Tensor, shift: float) -> Tensor:
        """Returns times as the denoiser takes them, of numbers ``u`` in [0, 1), float64 ``(B,)``."""

    @abstractmethod
    def mixture(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Returns α and σ, fp32 ``(B,)``, of timesteps ``(B,)``."""

    @abstractmethod
    def snr(self, timesteps: Tensor) -> Tensor:
        """Returns the signal-to-noise ratio ``α²/σ²``, float64 ``(B,)``, of timesteps ``(B,)``."""

    def picture(self, noisy: Tensor, output: Tensor, noise: float) -> Tensor:
        """Returns the picture x that a prediction implies.

        Args:
            noisy: x_t, ``(B, C, h, w)``.
            output: the prediction, ``(B, C, h, w)``.
            noise: ``σ / (α + σ)``, from 0 to 1.
        """
        signal = 1 - noise
        whole = 1.0 if self.prediction == FLOW else math.hypot(signal, noise)  # α + σ = 1, or α² + σ² = 1
        return PREDICTIONS[self.prediction].picture(noisy, output, signal / whole, noise / whole)


@dataclass(frozen=True)
class Diffusion(Process):
    """Noise by a table ``ᾱ``; the denoiser predicts ε, v or the picture.

    Args:
        alphas: ᾱ of every timestep, ``(T,)``.
        predicts: a key of :data:`PREDICTIONS`.
    """

    word: ClassVar[str] = "diffusion"
    alphas: Tensor
    predicts: str = "epsilon"

    @property
    def prediction(self) -> str:
        """What the base's scheduler says."""
        return self.predicts

    @classmethod
    def of(cls, scheduler: Any, device: Any = None) -> Diffusion:
        """See :meth:`Process.of`."""
        name = type(scheduler).__name__
        alphas = getattr(scheduler, "alphas_cumprod", None)
        if alphas is None:
            raise DoesNotFit(f"{name} has no table of ᾱ (alphas_cumprod), and this base is trained on ε or v")
        prediction = scheduler.config.prediction_type
        if prediction not in PREDICTIONS or prediction == FLOW:
            known = ", ".join(name for name in PREDICTIONS if name != FLOW)
            raise DoesNotFit(f"{name} predicts {prediction!r}; known are {known}")
        return cls(alphas.float().to(device), prediction)

    @classmethod
    def facts(cls, own: Mapping[str, Any], accepted: Collection[str], title: str, shift: float) -> dict[str, Any]:
        """See :meth:`Process.facts`."""
        for key, harmless in _NEEDED.items():
            if key not in accepted and own.get(key, harmless) != harmless:
                raise DoesNotFit(f"{title} cannot sample a base with {key} = {own[key]!r}; choose another")
        return {key: own[key] for key in _LEVELS if key in accepted and key in own}

    def timesteps(self, u: Tensor, shift: float) -> Tensor:
        """Returns whole numbers from 0 to T − 1, int64 ``(B,)``."""
        return (u * len(self.alphas)).long()

    def mixture(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``√ᾱ`` and ``√(1−ᾱ)``, each ``(B,)``, of timesteps ``(B,)``."""
        alphas = self.alphas[timesteps]
        return alphas.sqrt(), (1 - alphas).sqrt()

    def snr(self, timesteps: Tensor) -> Tensor:
        """Returns ``ᾱ / (1 − ᾱ)``, ``(B,)``, of timesteps ``(B,)``."""
        alphas = self.alphas[timesteps].double()
        return alphas / (1 - alphas)


@dataclass(frozen=True)
class Flow(Process):
    """Straight lines from pictures to noise; the denoiser predicts ``n − x``.

    Args:
        length: the number of the time that is pure noise, 1000.
    """

    word: ClassVar[str] = "flow"
    length: int = 1000

    @property
    def prediction(self) -> str:
        """The only one that flows have."""
        return FLOW

    @classmethod
    def of(cls, scheduler: Any, device: Any = None) -> Flow:
        """See :meth:`Process.of`."""
        if not _flows(scheduler.config, type(scheduler).__name__):
            raise DoesNotFit(f"{type(scheduler).__name__} with these settings samples no flow, and this base is one")
        return cls(int(scheduler.config.num_train_timesteps))

    @classmethod
    def facts(cls, own: Mapping[str, Any], accepted: Collection[str], title: str, shift: float) -> dict[str, Any]:
        """See :meth:`Process.facts`."""
        if "use_flow_sigmas" in accepted:
            told = {"use_flow_sigmas": True, "prediction_type": FLOW, "flow_shift": shift}
            return told | {"num_train_timesteps": own["num_train_timesteps"]}
        if "shift" not in accepted:
            raise DoesNotFit(f"{title} cannot sample a flow, and this base is one; choose another")
        told = {key: own[key] for key in _FLOW if key in accepted and key in own}
        shifts = "shift" in own and (not own.get("use_dynamic_shifting") or "use_dynamic_shifting" in accepted)
        return told if shifts else told | {"shift": shift}

    def timesteps(self, u: Tensor, shift: float) -> Tensor:
        """Returns ``1000 s`` with ``s = k u / (1 + (k−1) u)``, fp32 ``(B,)``."""
        return (self.length * (shift * u / (1 + (shift - 1) * u))).float()

    def mixture(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Returns ``1 − s`` and ``s``, each ``(B,)``, of timesteps ``(B,)``."""
        s = timesteps.float() / self.length
        return 1 - s, s

    def snr(self, timesteps: Tensor) -> Tensor:
        """Returns ``((1 − s) / s)²``, ``(B,)``, of timesteps ``(B,)``."""
        s = timesteps.double() / self.length
        return ((1 - s) / s.clamp_min(1e-6)).square()


_LEVELS: Final = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
    "timestep_spacing",
    "steps_offset",
    "set_alpha_to_one",
)
# a scheduler that does not know one of these would compute another picture, so it is refused
_NEEDED: Final = {"prediction_type": "epsilon", "rescale_betas_zero_snr": False}
_FLOW: Final = (
    "num_train_timesteps",
    "shift",
    "use_dynamic_shifting",
    "base_shift",
    "max_shift",
    "base_image_seq_len",
    "max_image_seq_len",
    "shift_terminal",
    "time_shift_type",
)


def _flows(config: Mapping[str, Any], name: str) -> bool:
    """Whether a scheduler samples a flow: diffusers has classes of their own, and a setting of others."""
    return name.startswith("FlowMatch") or bool(config.get("use_flow_sigmas"))
