"""CorDA's run over data before ``get_peft_model``, as PEFT has it: it leaves at each layer what the start is made of.

``get_peft_model(..., calibrate=batches)`` does the same in one go; this is for scripts that keep files between the two.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from studio.adapters import METHODS, Site
from studio.adapters.contract.calibration import Gauge, measured
from studio.adapters.hosting.assembly import site_at
from studio.adapters.sites.read import read_weight
from studio.atomic import atomic_write
from studio.errors import BadFile, DoesNotFit
from studio.peft.configs.select import select
from studio.peft.configs.translate import method_of, translate
from studio.peft.model.starts import CordaEigens
from studio.peft.model.tuner import base_of
from studio.peft.terms.errors import Wrong, refusals

__all__ = ["preprocess_corda"]

_KINDS: Final = ("linear", "conv1d-gpt2")
_PARTS: Final = ("S_WC", "U_WC", "V_WC")
_WORST: Final = 0.05
"""How far a matrix times its inverse may be from the identity, by the root of the squares of all entries."""


def preprocess_corda(
    model: nn.Module,
    lora_config: Any,
    run_model: Callable[[], Any] | None = None,
    hooked_model: nn.Module | None = None,
) -> None:
    """Finds the directions that CorDA's start is made of, and leaves them at each layer as ``eigens``.

    With ``C`` the mean over calls of ``Xᵀ X`` (``X``: a call's inputs divided by the largest of them), damped until it
    can be inverted: ``W C = U S Vᵀ``, and the directions of the inputs are ``C⁻¹ V``. The first ranks are kept, or the
    last ones for the method "kpm".

    Args:
        model: the base. lora_config: its config, with ``corda_config``.
        run_model: runs the model over data; it may be left out where ``corda_config`` names a file that is there.
        hooked_model: the model that it runs, where that is another one than ``model``.

    Raises:
        Wrong: nothing to run and no file, a method that is none, or inputs that are not finite.
        BadFile: a file that is no cache of CorDA's, or of other layers. DoesNotFit: a layer that no data reached.
    """
    base, config = base_of(model), lora_config.corda_config
    if config is None or config.corda_method not in ("ipm", "kpm"):
        stated = None if config is None else config.corda_method
        raise Wrong(f"Invalid corda_method found: {stated}, it should be 'ipm' or 'kpm'.")
    with refusals():
        sites = _targets(base, lora_config)
        if _there(config.cache_file):
            found = _cached(Path(config.cache_file), sites)
        else:
            bare = copy.copy(lora_config)
            bare.corda_config = None  # its files are dealt with here
            ours: Any = translate(bare, base, list(sites))
            means = _covariances(base, sites, config, run_model, hooked_model)
            found = {path: _directions(site, means[path], ours.rank_at(path), config.corda_method)
                     for path, site in sites.items()}  # fmt: skip
            if config.cache_file is not None:
                tensors = {
                    f"{path}.eigens.{part}": getattr(one, part) for path, one in found.items() for part in _PARTS
                }
                _write(Path(config.cache_file), tensors)
    for path, site in sites.items():
        site.module.eigens = found[path]  # type: ignore[assignment]


def _targets(model: nn.Module, config: Any) -> dict[str, Site]:
    """The layers that the config names and CorDA is for."""
    kinds = METHODS[method_of(config)].adapter.kinds
    sites = {path: site_at(model, path, kinds) for path in select(model, config, kinds)}
    return {path: site for path, site in sites.items() if site.kind in _KINDS}


class _Scaled(Gauge):
    """The sum over calls of ``Xᵀ X``, with the inputs of each call divided by the largest of them."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.calls = 0

    def add(self, x: Tensor) -> None:
        x = x / x.max().abs()
        if not bool(torch.isfinite(x).all()):
            raise DoesNotFit(
                "Invalid value found in input, please check your input data: it is not finite, or all zero"
            )
        own = x.t() @ x
        self.total = own if self.total is None else self.total + own
        self.calls += 1


def _covariances(
    model: nn.Module, sites: Mapping[str, Site], config: Any, run: Callable[[], Any] | None, hooked: nn.Module | None
) -> dict[str, Tensor]:
    """The mean of each layer's ``Xᵀ X`` ``(cols, cols)``, out of a file or measured."""
    if _there(config.covariance_file):
        return _read(Path(config.covariance_file), {path: (site.cols, site.cols) for path, site in sites.items()})
    if run is None:
        raise Wrong("run_model must be specified when covariance file and cache file aren't built.")
    ran = model if hooked is None else base_of(hooked)
    there = {path: site_at(ran, path, _KINDS) for path in sites}
    gauges = {path: _Scaled() for path in sites}
    measured(ran, there, gauges, lambda _: run())
    means: dict[str, Tensor] = {}
    for path, gauge in gauges.items():
        assert gauge.total is not None, "measured() has seen to it that data came"
        means[path] = gauge.total / gauge.calls
        if not config.prune_temporary_fields:
            kept = {"covariance_matrix": means[path], "sample_count": gauge.calls}
            sites[path].module.__dict__.update(kept)
    if config.covariance_file is not None:
        _write(Path(config.covariance_file), means)
    return means


def _directions(site: Site, covariance: Tensor, rank: int, method: str) -> CordaEigens:
    weight = read_weight(site).float()
    damped, inverse = _inverted(covariance.float().to(weight.device), site.path)
    u, s, vh = torch.linalg.svd(weight @ damped, full_matrices=False)
    if rank > len(s):
        raise Wrong(f"CorDA at {site.path} ({site.rows} x {site.cols}): the rank {rank} is larger than the layer")
    part = slice(rank) if method == "ipm" else slice(len(s) - rank, None)
    right = (vh @ inverse).t()
    return CordaEigens(s[part].clone(), u[:, part].clone(), right[:, part].clone())


def _inverted(covariance: Tensor, path: str) -> tuple[Tensor, Tensor]:
    """The covariance with so much added to its diagonal that it can be inverted, and its inverse."""
    one = torch.eye(len(covariance)).to(covariance)
    damping = 0.01
    while damping < 1e6 and bool(torch.isfinite(covariance).all()):
        damped = covariance + one * covariance.diagonal().mean() * damping
        inverse = torch.linalg.inv(damped)
        if torch.dist(damped @ inverse, one) < _WORST:
            return damped, inverse
        damping *= 2
    raise Wrong(
        f"the inputs of {path} while calibrating give no covariance that can be inverted; check your input data"
    )


# -- files -------------------------------------------------------------------------------------------------------------


def _there(file: Any) -> bool:
    return file is not None and Path(file).is_file() and Path(file).stat().st_size > 0


def _cached(file: Path, sites: Mapping[str, Site]) -> dict[str, CordaEigens]:
    wanted: dict[str, tuple[int | None, ...]] = {}
    for path, site in sites.items():
        shapes = ((None,), (site.rows, None), (site.cols, None))
        wanted |= {f"{path}.eigens.{part}": shape for part, shape in zip(_PARTS, shapes, strict=True)}
    held = _read(file, wanted)
    return {path: CordaEigens(*(held[f"{path}.eigens.{part}"] for part in _PARTS)) for path in sites}


def _read(file: Path, wanted: Mapping[str, tuple[int | None, ...]]) -> dict[str, Tensor]:
    """The tensors of a file of ``torch.save``, checked by name and shape; None is any size."""
    try:
        held = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError) as error:
        raise BadFile(f"{file} cannot be read as a file of CorDA's: {str(error).splitlines()[0][:80]}") from None
    for name, shape in wanted.items():
        tensor = held.get(name) if isinstance(held, Mapping) else None
        own = tuple(tensor.shape) if isinstance(tensor, Tensor) else ()
        if len(own) != len(shape) or any(size not in (None, one) for size, one in zip(shape, own, strict=True)):
            raise BadFile(f"{file} has no tensor {name!r} of the shape {shape}; it is of another model: delete it")
    return {name: held[name] for name in wanted}


def _write(file: Path, tensors: Mapping[str, Tensor]) -> None:
    buffer = io.BytesIO()  # a file's name would go into it, and what the disk says come as an error of C++
    torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}, buffer)
    atomic_write(file, buffer.getvalue())
