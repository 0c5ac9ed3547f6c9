"""What LoHa and LoKr share: a core for a kernel, a magnitude of its own, and dropping of outputs or whole layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch
from torch import Tensor

from studio.adapters.contract.adapter import Adapter, Given
from studio.adapters.contract.foreign import Layers, Sites, Tables
from studio.adapters.contract.ranked import RankedConfig
from studio.adapters.contract.rows import Rows
from studio.adapters.sites.site import Site
from studio.config import finite
from studio.errors import DoesNotFit

__all__ = [
    "LycorisAdapter",
    "LycorisConfig",
    "cores_for_peft",
    "cores_of_peft",
    "cores_stated",
    "drawn",
    "through_core",
]

Config = TypeVar("Config", bound="LycorisConfig")

AXES: Final = ("outputs", "inputs")
"""What a weight has a magnitude for each of."""


@dataclass(frozen=True, kw_only=True)
class LycorisConfig(RankedConfig):
    """A config with the choices of LyCORIS.

    Attributes:
        tucker: give a factorised product of a convolution a core ``(rank, rank, *kernel)``, so that the kernel costs
            ``rank²`` numbers per position; pointwise convolutions and matrices need none.
        rank_dropout: probability in [0, 1) with which an output of the change is dropped while training.
        rank_dropout_scale: divide the outputs that are kept by ``1 - rank_dropout``.
        module_dropout: probability in [0, 1) with which a layer goes without its change in a training step.
        decompose: split the weight into magnitude and direction, as DoRA does: ``W' = m ⊙ (W + ΔW) / ‖W + ΔW‖`` with a
            trained ``m`` per output ("outputs") or per channel that the layer reads ("inputs"); "": do not.
    """

    tucker: bool = False
    rank_dropout: float = 0.0
    rank_dropout_scale: bool = True
    module_dropout: float = 0.0
    decompose: str = ""

    def check(self) -> None:
        super().check()
        for name in ("rank_dropout", "module_dropout"):
            value = getattr(self, name)
            self.require(finite(value) and 0.0 <= value < 1.0, name, "a probability in [0, 1)")
        self.require(self.decompose in ("", *AXES), "decompose", f"'', {' or '.join(map(repr, AXES))}")


class LycorisAdapter(Adapter[Config]):
    """An adapter that may drop outputs of its change, or all of it, while it is trained.

    ``magnitude`` is ``(rows, 1, …)`` or ``(1, in, …)``, with ones for the kernel, where the weight is decomposed.
    """

    @property
    def dropout(self) -> float:
        return float(max(self.config.rank_dropout, self.config.module_dropout))

    @classmethod
    def shown(cls, layers: Layers) -> dict[str, Any]:
        found = next((tensors["magnitude"] for tensors in layers.values() if "magnitude" in tensors), None)
        axis = "" if found is None else AXES[0] if len(found) > 1 else AXES[1]
        return {"tucker": any(tensors.keys() & CORES for tensors in layers.values()), "decompose": axis}

    @classmethod
    def cut(cls, tensors: Mapping[str, Tensor], rows: Rows, fixed: Mapping[str, Any]) -> dict[str, Tensor]:
        magnitude = tensors.get("magnitude")
        if magnitude is not None and len(magnitude) != rows.total:
            raise DoesNotFit("its magnitude per input is that of all outputs together")
        if tensors.keys() & CORES:
            raise DoesNotFit(f"{cls.__name__.removesuffix('Adapter')} with a core is that of a convolution")
        return super().cut(tensors, rows, fixed)

    @classmethod
    def own_magnitude(cls, site: Site, config: LycorisConfig, given: Given) -> dict[str, Tensor]:
        """Returns the magnitude that a new adapter starts with, where it has one: that of the weight.

        Args:
            site: the layer. config: the config. given: the base's weight.
        """
        if not config.decompose:
            return {}
        weight = given.weight().reshape(site.rows, *site.inner_shape)
        return {"magnitude": _norms(weight, AXES.index(config.decompose))}

    def check_magnitude(self) -> None:
        """Checks the magnitude against the layer.

        Raises:
            DoesNotFit: it is neither one per output nor one per input.
        """
        found = self.tensor("magnitude")
        if found is None:
            return
        ones = (1,) * (len(self.site.inner_shape) - 1)
        if tuple(found.shape) not in ((self.site.rows, 1, *ones), (1, self.site.inner_shape[0], *ones)):
            raise DoesNotFit(
                f"{type(self).__name__} at {self.site.path}: a magnitude of the shape {tuple(found.shape)} is neither "
                f"one per output ({self.site.rows}) nor one per input ({self.site.inner_shape[0]})"
            )

    def magnified(self, weight: Tensor, change: Tensor) -> Tensor:
        """Returns the change as it is, or what it comes to where the weight is decomposed, ``(rows, cols)``.

        Args:
            weight: the base's, in its own shape. change: of the product alone, ``(rows, cols)``.
        """
        magnitude = self.tensor("magnitude")
        if magnitude is None:
            return change
        base = self.site.matrix(weight).reshape(self.site.rows, *self.site.inner_shape).to(change.dtype)
        moved = base + change.reshape(base.shape)
        norm = _norms(moved.detach(), 0 if len(magnitude) > 1 or self.site.rows == 1 else 1)
        return (moved * (magnitude.to(change.dtype) / norm) - base).flatten(1)

    def thinned(self, change: Tensor) -> Tensor:
        """Returns ``change`` ``(batch, ..., rows)`` with outputs dropped while this adapter is trained."""
        if not (self.dropout and self.training and self.trainable):
            return change
        config = self.config
        of_rank, of_all = torch.rand(self.site.rows, device="cpu"), torch.rand(1, device="cpu")
        kept = (of_rank >= config.rank_dropout) * (of_all >= config.module_dropout)
        gain = 1 / (1 - config.rank_dropout) if config.rank_dropout_scale else 1.0
        return change * self.site.over_outputs((kept * gain).to(change))


def _norms(weight: Tensor, axis: int) -> Tensor:
    """Norms of ``(rows, in, *kernel)`` over all axes but one, which stay as ones."""
    others = [one for one in range(weight.dim()) if one != axis]
    return torch.linalg.vector_norm(weight, dim=others, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)


def drawn(generator: torch.Generator, *shape: int) -> Tensor:
    """Draws numbers in ``±1 / sqrt(fan_in)``, where the fan-in is the product of all axes but the first."""
    bound = 1 / math.sqrt(math.prod(shape[1:]))
    return torch.empty(*shape).uniform_(-bound, bound, generator=generator)


def through_core(core: Tensor, right: Tensor) -> Tensor:
    """Computes ``Σ_j core[i, j] right[j, q]`` as a matrix ``(r, q · kernel)``: the right factor of a pair.

    Shapes: ``core`` ``(r, r, *kernel)``, ``right`` ``(r, q)``.

    Example:
        >>> through_core(torch.ones(2, 2, 3), torch.ones(2, 4)).shape
        torch.Size([2, 12])
    """
    return torch.einsum("ij...,jq->iq...", core, right).flatten(1)


# -- PEFT --------------------------------------------------------------------------------------------------------------

CORES: Final = ("t1", "t2", "w2_t")


def cores_of_peft(fields: Mapping[str, Any], site: Site, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Takes the axis off that PEFT adds to the core of a Conv1d."""
    kernel, cores = site.inner_shape[1:], {name: tensors[name] for name in CORES if name in tensors}
    fits = {name: core for name, core in cores.items() if math.prod(core.shape[2:]) == math.prod(kernel)}
    return {**tensors, **{name: core.reshape(*core.shape[:2], *kernel) for name, core in fits.items()}}


def cores_for_peft(config: LycorisConfig, sites: Sites, layers: Layers) -> Tables:
    """Gives the cores of Conv1d layers the axis that PEFT expects.

    Raises:
        DoesNotFit: some convolutions have a core and some, though they are factorised, have none; or weights are
            decomposed.
    """
    if any("magnitude" in tensors for tensors in layers.values()):
        raise DoesNotFit(
            f"PEFT's {type(config).__name__} decomposes no weight (decompose=...); save with format='diffusers' or "
            "'kohya'"
        )
    wide = [path for path, site in sites.items() if math.prod(site.inner_shape[1:]) > 1 and "w2" not in layers[path]]
    cored = [path for path, tensors in layers.items() if tensors.keys() & CORES]
    if cored and sorted(cored) != sorted(wide):
        raise DoesNotFit(
            "PEFT gives a core to all convolutions wider than 1, or to none, and here some have one; save with "
            "format='diffusers' or 'kohya'"
        )
    made = {path: dict(tensors) for path, tensors in layers.items()}
    for tensors in made.values():
        tensors |= {name: tensors[name][..., None] for name in CORES if name in tensors and tensors[name].dim() == 3}
    return made


def cores_stated(config: LycorisConfig, sites: Sites, layers: Layers) -> dict[str, Any]:
    """Says to PEFT whether there are cores."""
    return {"use_effective_conv2d": any(tensors.keys() & CORES for tensors in layers.values())}
