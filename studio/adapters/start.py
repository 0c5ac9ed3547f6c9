"""What a new adapter starts from: the base's weights, a source of randomness, and measurements where a method asks."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from studio.adapters.contract.adapter import AdapterConfig, Given, generator_for
from studio.adapters.contract.calibration import Calibrate, Gauge, measured
from studio.adapters.contract.pattern import matches
from studio.adapters.hosting.attached import whole_path
from studio.adapters.info import site_of
from studio.adapters.sites.read import read_bias, read_weight
from studio.adapters.sites.site import Site
from studio.device import on_cpu
from studio.errors import BadConfig

__all__ = ["check_sources", "started"]


@torch.no_grad()
def started(
    model: Any,
    config: AdapterConfig,
    sites: Mapping[str, Mapping[str, Site]],
    seed: int,
    calibrate: Calibrate | None,
    original: Any,
) -> tuple[AdapterConfig, dict[str, dict[str, Tensor]]]:
    """Decides what is decided over all layers, then makes the tensors that each starts with.

    Args:
        model: the model or pipeline. config: the method and its settings.
        sites: component -> path -> layer. seed: what all random numbers are drawn from.
        calibrate: what a start from data is made from, or None. original: the model before it was quantised, or None.

    Returns:
        The config, and path (with its component in front) -> name -> tensor; a plan may have left layers out.

    Raises:
        BadConfig: a config that a layer cannot have, or a start without what it is made from.
        UnsupportedLayer: a layer of a kind that the method does not cover.
    """
    method = config.adapter
    everything = {
        whole_path(component, path): site for component, found in sites.items() for path, site in found.items()
    }
    for site in everything.values():
        method.check_kind(site)
    given = {whole: _given(whole, site, seed, original) for whole, site in everything.items()}
    for whole, gauge in _measured(model, config, everything, calibrate).items():
        given[whole] = dataclasses.replace(given[whole], inputs=gauge)
    config = method.plan(everything, config, given)
    if config.exclude:  # a plan may leave layers out
        sites = {component: _without(found, config.exclude) for component, found in sites.items()}
    tensors: dict[str, dict[str, Tensor]] = {}
    with on_cpu():
        for component, found in sites.items():
            shared = method.common(found, config)
            for path, site in found.items():
                whole = whole_path(component, path)
                tensors[whole] = {**method.start(site, config, given[whole]), **shared}
                shared = {}
    return config, tensors


def _given(whole: str, site: Site, seed: int, original: Any) -> Given:
    return Given(
        functools.partial(read_weight, site),
        generator_for(seed, whole),
        original=None if original is None else functools.partial(_original_weight, original, whole),
        bias=functools.partial(read_bias, site),
    )


def check_sources(config: AdapterConfig, calibrate: Calibrate | None, original: Any) -> None:
    """Checks that the start gets what it is made from, and nothing that it would ignore.

    Raises:
        BadConfig: data or an original model that is missing, or that would be ignored.
    """
    words = f"{type(config).__name__}(init={config.init!r})" if hasattr(config, "init") else type(config).__name__
    if config.data_driven and calibrate is None:
        raise BadConfig(f"{words} starts from data: pass calibrate=, batches or a function that runs the model on them")
    if calibrate is not None and not config.data_driven:
        raise BadConfig(f"calibrate is given, and {words} does not start from data: leave it out")
    if config.restores and original is None:
        raise BadConfig(
            f"{words} makes up for what quantisation took from a base: quantise it with studio.quantize, and pass the "
            "model as it was before, attach(model, ..., original=...)"
        )
    if original is not None and not config.restores:
        raise BadConfig(f"original is given, and {words} does not use it: leave it out")


def _without(sites: Mapping[str, Site], exclude: Sequence[str]) -> dict[str, Site]:
    return {path: site for path, site in sites.items() if not any(matches(pattern, path) for pattern in exclude)}


def _measured(
    model: Any, config: AdapterConfig, sites: Mapping[str, Site], calibrate: Calibrate | None
) -> dict[str, Gauge]:
    """Measures the inputs of layers where the start is made from them."""
    if calibrate is None:
        return {}
    return measured(model, sites, {path: config.gauge(site) for path, site in sites.items()}, calibrate)


def _original_weight(original: Any, whole: str) -> Tensor:
    return read_weight(site_of(original, whole))
