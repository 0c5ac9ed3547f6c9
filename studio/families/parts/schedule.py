r"""Times of flows: how their noise levels are shifted, and what a scheduler is given.

A flow of k times the noise has ``s = k u / (1 + (k−1) u)`` for u evenly spread; *static* bases have one k,
*dynamic* ones ``k = exp(μ)`` with μ linear in the number N of image tokens.

References:
    | Scaling Rectified Flow Transformers for High-Resolution Image Synthesis (Esser et al., 2024), arXiv:2403.03206
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

__all__ = ["evenly", "flow_shift", "linear_mu"]


def linear_mu(config: Mapping[str, Any], tokens: int) -> float:
    """Returns ``μ = base + (max − base) (N − N₀) / (N₁ − N₀)``, with the numbers of a scheduler's config.

    Args:
        config: of the base's scheduler; Flux.1's numbers where it has none.
        tokens: N, the number of image tokens.

    Example:
        >>> round(linear_mu({}, 4096), 2)
        1.15
    """
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    base, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return float(base + (most - base) * (tokens - low) / (high - low))


def flow_shift(patch: int) -> Callable[[Any, tuple[int, int]], float]:
    """Returns a family's ``shift``: k at a size, by the base's scheduler.

    Args:
        patch: latent cells per image token, along one side.
    """

    def shift(pipe: Any, cells: tuple[int, int]) -> float:
        config = pipe.scheduler.config
        if config.get("use_dynamic_shifting"):
            return math.exp(linear_mu(config, (cells[0] // patch) * (cells[1] // patch)))
        return float(config.get("shift", config.get("flow_shift", 1.0)))

    return shift


def evenly(mu: Callable[[Mapping[str, Any], tuple[int, int], int], float]) -> Callable[..., None]:
    """Returns a family's ``schedule``: levels ``1, 1 − 1/n, … 1/n`` of n steps, shifted by the scheduler.

    Args:
        mu: ``(scheduler's config, cells, steps) -> μ``, which dynamic schedulers want; others leave it aside.
    """

    def schedule(pipe: Any, scheduler: Any, steps: int, cells: tuple[int, int], device: Any) -> None:
        accepted = inspect.signature(scheduler.set_timesteps).parameters
        if "sigmas" not in accepted or not type(scheduler).__name__.startswith("FlowMatch"):
            scheduler.set_timesteps(steps, device=device)  # told its shift when it was made
            return
        dynamic = {"mu": mu(scheduler.config, cells, steps)} if "mu" in accepted else {}
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), device=device, **dynamic)

    return schedule
