"""Starts that are taken out of the weights (PiSSA, OLoRA, CorDA), in PEFT's form: the base changed, one pair saved.

PEFT subtracts the start from the base and saves the trained pair alone, with the start's name in the config; who loads
it makes the start anew and subtracts it again. Here the base stays, and the start is a second, frozen pair.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from studio.adapters import Adapter, Site
from studio.adapters.contract.adapter import Given, generator_for
from studio.adapters.hosting.assembly import site_at
from studio.adapters.sites.read import read_weight
from studio.device import on_cpu
from studio.peft.configs.checks import takes_weights
from studio.peft.model.state import State
from studio.peft.terms.errors import PeftWarning, Wrong

__all__ = [
    "EIGENS",
    "CordaEigens",
    "drop_eigens",
    "in_pefts_form",
    "pairs_of_eigens",
    "residual",
    "start_of_file",
    "taken_by",
]

EIGENS: Final = "eigens"
"""Where ``preprocess_corda`` leaves what a layer starts from; PEFT has it there."""


@dataclass
class CordaEigens:
    """What CorDA found for a layer: singular values ``(r,)``, left ``(rows, r)`` and right directions ``(cols, r)``."""

    S_WC: Tensor
    U_WC: Tensor
    V_WC: Tensor


def drop_eigens(sites: Mapping[str, Site]) -> None:
    """Takes what ``preprocess_corda`` left off the layers again."""
    for site in sites.values():
        for name in (EIGENS, "sample_count", "covariance_matrix", "corda_method", "rank"):
            site.module.__dict__.pop(name, None)


def pairs_of_eigens(sites: Mapping[str, Site], ours: Any) -> dict[str, dict[str, Tensor]]:
    """Makes the tensors that CorDA starts with out of what ``preprocess_corda`` found.

    Args:
        sites: path -> layer. ours: the studio's config.

    Raises:
        Wrong: a layer for which it was not run, or with another rank.
    """
    return {path: _pair_of_eigens(site, ours.rank_at(path), ours.scale_at(path)) for path, site in sites.items()}


def _pair_of_eigens(site: Site, rank: int, scale: float) -> dict[str, Tensor]:
    found = site.module.__dict__.get(EIGENS)
    if not isinstance(found, CordaEigens):
        raise Wrong(
            f"`eigens` attribute not found for layer {site.path}, please run `preprocess_corda` first (or give "
            "get_peft_model(..., calibrate=batches), which needs no run of its own)."
        )
    shapes = [tuple(found.U_WC.shape), tuple(found.S_WC.shape), tuple(found.V_WC.shape)]
    if shapes != [(site.rows, rank), (rank,), (site.cols, rank)] or scale <= 0:
        raise Wrong(
            f"Matrix U size mismatch at {site.path}: {shapes[0]} vs. ({site.rows}, {rank}). Please make sure the "
            "`lora_config` and `model` argument of `preprocess_corda` is consistent with `get_peft_model`, and that "
            "lora_alpha is above 0."
        )
    root = (found.S_WC.float() / scale).sqrt()
    down = (found.V_WC.float().t() * root[:, None]).reshape(rank, *site.inner_shape).contiguous()
    up = (found.U_WC.float() * root).contiguous()
    return {"down": down, "up": up, "down0": down.clone(), "up0": up.clone()}


def start_of_file(
    model: nn.Module, config: Any, ours: Any, layers: Mapping[str, Mapping[str, Tensor]]
) -> tuple[Any, dict[str, dict[str, Tensor]]]:
    """Adds the start that the config of a saved adapter names to its tensors, made anew from the base as PEFT does.

    Args:
        model: the base. config: PEFT's config of the saved adapter. ours: what its tensors mean by themselves.
        layers: path -> name -> tensor.

    Returns:
        The studio's config, and the tensors.

    Raises:
        Wrong: a start that cannot be made anew.
    """
    word = config.init_lora_weights.lower() if isinstance(getattr(config, "init_lora_weights", None), str) else ""
    made = {path: dict(tensors) for path, tensors in layers.items()}
    if word == "mica":
        return dataclasses.replace(ours, init="mica"), made
    if word in ("loftq", "lora_ga"):
        raise Wrong(
            f"init_lora_weights={word!r}: PEFT changes the base when such an adapter is loaded, by what its tensors do "
            "not say; convert it in PEFT to a plain one first"
        )
    if not takes_weights(word):
        return ours, made
    if word.startswith("pissa_niter"):
        warnings.warn(
            f"init_lora_weights={word!r} was drawn at random, here and in PEFT: the exact 'pissa' stands for it, and "
            "the adapter may act slightly otherwise than it was trained",
            PeftWarning,
            stacklevel=6,
        )
        word = "pissa"
    for path, tensors in made.items():
        site = site_at(model, path, ours.adapter.kinds)
        if site.kind != "embedding" and "down0" not in tensors:  # of an embedding PEFT takes the usual start
            start = _made_anew(site, dataclasses.replace(ours, init=word))
            tensors |= {"down0": start["down0"], "up0": start["up0"]}
    return dataclasses.replace(ours, init=word), made


def _made_anew(site: Site, ours: Any) -> Mapping[str, Tensor]:
    if ours.init == "corda":
        return _pair_of_eigens(site, ours.rank_at(site.path), ours.scale_at(site.path))
    with on_cpu():
        given = Given(functools.partial(read_weight, site), generator_for(0, site.path))
        return ours.adapter.start(site, ours, given)


def in_pefts_form(state: State, name: str) -> bool:
    """Says whether an adapter can be saved as PEFT does: the pair alone, and in the config how its start is made.

    Args:
        state: what is on the model. name: the adapter.
    """
    config: Any = state.configs[name]
    start = getattr(config, "init_lora_weights", None)
    word = start.lower() if isinstance(start, str) else ""
    if word not in ("pissa", "olora") and not (word == "corda" and state.extras[name].preprocessed):
        return False
    layers = state.own_layers(name).values()
    return all("down0" in one.tensors() and one.site.kind in ("linear", "conv1d-gpt2") for one in layers)


def residual(adapters: Mapping[str, Adapter], weight: Tensor) -> Tensor | None:
    """Returns the weight as PEFT leaves it under adapters that start out of it, or None where none does.

    Args:
        adapters: those of one layer. weight: the base's, as the layer has it, ``(...)``.
    """
    starts = [one for one in adapters.values() if "down0" in one.tensors()]
    if not starts:
        return None
    with torch.no_grad():
        taken = [taken_by(one) for one in starts]
        return weight.detach() - sum(change.to(weight) for change in taken)


def taken_by(adapter: Adapter) -> Tensor:
    """Returns what an adapter's start takes out of the weight, in the shape of :meth:`Adapter.delta`."""
    held: Any = adapter.tensors()
    scale = adapter.config.scale_at(adapter.site.path)  # type: ignore[attr-defined]
    return adapter.site.shaped((held["up0"] * scale) @ held["down0"].flatten(1))
