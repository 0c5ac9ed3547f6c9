"""AdaLoRA in PEFT's config.

PEFT gives every layer the rank ``init_r`` and the scale ``lora_alpha / (init_r + 1e-5)``, whatever is pruned later.
``rank_pattern`` says which ranks a layer has kept, as a list of ``init_r`` truth values under ``"<module>.lora_E"``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from studio.adapters import Site
from studio.adapters.contract.ranked import RankedConfig
from studio.errors import DoesNotFit

__all__ = ["allocated", "as_patterns"]

_END: Final = ".lora_E"
_SPARE: Final = 1e-5  # what PEFT adds to the rank before it divides by it


def allocated(config: RankedConfig, sites: Mapping[str, Site]) -> dict[str, Any]:
    """Makes the fields with which PEFT computes what the tensors of an adapter mean here.

    Args:
        config: the config; its patterns say the rank of every layer. sites: PEFT's module name -> layer.

    Raises:
        DoesNotFit: a scale that PEFT's AdaLoRA cannot have.
    """
    ranks = {module: config.rank_at(module) for module in sites}
    scales = {module: config.scale_at(module) for module in sites}
    most = max(ranks.values())
    first, scale = next(iter(scales.items()))
    for module, other in scales.items():
        if abs(other - scale) > 1e-6 * abs(scale) or other <= 0:
            raise DoesNotFit(
                f"PEFT's AdaLoRA has one scale above 0 for all layers; here it is {scale:g} at {first} and {other:g} "
                f"at {module}: save with format='diffusers'"
            )
    kept = {f"{module}{_END}": [index < rank for index in range(most)] for module, rank in ranks.items()}
    return {
        "init_r": most,
        "lora_alpha": float(f"{scale * (most + _SPARE):.12g}"),
        "rank_pattern": kept if set(ranks.values()) != {most} else None,
        **_phases(config),
    }


def _phases(config: Any) -> dict[str, int]:
    """The phases of a training, of which PEFT wants whole numbers, one step of pruning among them."""
    full, final = config.full_steps or 0, config.final_steps or 0
    return {"target_r": config.target_rank or 1, "tinit": full, "tfinal": final, "total_step": full + final + 1}


def as_patterns(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Restates PEFT's AdaLoRA fields as ranks and alphas per layer with the scale ``alpha / rank``.

    Raises:
        TypeError, ValueError, AttributeError: fields of other types.

    Example:
        >>> as_patterns({"init_r": 4, "lora_alpha": 4.00001, "rank_pattern": {"a.lora_E": [True, False, True, False]}})
        {'init_r': 4, 'lora_alpha': 4.0, 'rank_pattern': {'^a': 2}, 'alpha_pattern': {'^a': 2.0}}
    """
    start, alpha = int(fields.get("init_r", 12)), float(fields.get("lora_alpha", 8))
    ranks = {
        "^" + key.removesuffix(_END): max(1, sum(map(bool, kept)))  # one rank of zeros stands for none
        for key, kept in (fields.get("rank_pattern") or {}).items()
    }

    def over_rank(rank: int) -> float:
        return float(f"{(alpha if alpha > 0 else rank) / (start + _SPARE) * rank:.12g}")

    alphas = {module: over_rank(rank) for module, rank in ranks.items()}
    return {
        **fields, "init_r": start, "lora_alpha": over_rank(start), "rank_pattern": ranks, "alpha_pattern": alphas
    }  # fmt: skip
