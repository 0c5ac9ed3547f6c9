"""bake and unbake: fold a blend into the weights, and give back the original bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from studio.adapters.blend import check_constant, current_blend, read_blend
from studio.adapters.contract.adapter import Adapter
from studio.adapters.contract.strength import Strength, StrengthLike
from studio.adapters.hosting.assembly import Assembly
from studio.adapters.hosting.attached import assemblies, check_unbaked
from studio.adapters.hosting.mount import Mount
from studio.adapters.hosting.turns import in_turn
from studio.adapters.sites.quantized import QuantizedSite, put
from studio.errors import DoesNotFit
from studio.quantization.backend import Held

__all__ = ["Requantized", "bake", "unbake"]


@dataclass
class Requantized:
    """What :func:`bake` has packed anew.

    Attributes:
        sites: paths of the layers, with their component in front for a pipeline.
        off, norm: ``‖W − Q‖²`` and ``‖W‖²`` over them, of the weights with the blend in them.
    """

    sites: list[str] = field(default_factory=list)
    off: float = 0.0
    norm: float = 0.0

    @property
    def error(self) -> float:
        """``‖W − Q‖ / ‖W‖``."""
        return (self.off / self.norm) ** 0.5 if self.norm else 0.0

    def __str__(self) -> str:
        return f"{len(self.sites)} layers quantised anew, relative error {self.error:.4f}"


@in_turn
def bake(
    model: Any, blend: Mapping[str, StrengthLike] | str | None = None, *, requantize: bool = False
) -> Requantized | None:
    """Folds a blend into the weights: ``W ← round(W + Σ s_i ΔW_i)``, computed in fp32 and rounded once.

    The original tensors are kept and come back by :func:`unbake`. While a blend is baked, no adapter acts live.

    A quantised layer gets a dense weight meanwhile, in the type that it computes in, unless every change there is
    constant in each of its groups of columns (QA-LoRA): then its zero points move and nothing else.

    Args:
        model: the model or pipeline.
        blend: the blend; None bakes the current one.
        requantize: pack the changed weights of quantised layers as they were packed before: as small as the base, and
            as far from the blend as quantising is.

    Returns:
        With ``requantize``, what was packed and with which error; else None.

    Raises:
        UnknownName: an adapter that is not attached. BadConfig: an impossible strength.
        DoesNotFit: a blend is baked already, strengths differ by sample, weights are offloaded, or nothing is quantised
            that could be quantised anew.
        UnsupportedLayer: a packing that can be read and not written (GGUF's K-quants).

    Example:
        >>> import torch, studio
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> _ = studio.attach(net, studio.LoRA(rank=2, targets=("0",), init="orthogonal"), name="dog")
        >>> weight = net[0].weight
        >>> studio.bake(net, {"dog": 0.8}); net[0].weight is weight
        False
        >>> studio.unbake(net); net[0].weight is weight
        True
    """
    check_unbaked(model, "bake")
    strengths = current_blend(model) if blend is None else read_blend(model, blend)
    for name, strength in strengths.items():
        check_constant(name, strength, "weights can hold one strength for all")
    present = list(assemblies(model).values())
    anew = Requantized() if requantize else None
    if requantize and not any(
        isinstance(mount.site, QuantizedSite) for one in present for mount in one.mounts.values()
    ):
        raise DoesNotFit("no layer with adapters is quantised, so there is nothing to quantise anew")
    try:
        for assembly in present:
            _bake_one(assembly, {n: s for n, s in strengths.items() if n in assembly.records}, anew)
    except BaseException:
        for assembly in present:
            _restore(assembly)
        raise
    return anew


def _bake_one(assembly: Assembly, strengths: dict[str, Strength], anew: Requantized | None) -> None:
    assembly.levels.baked = {}
    for path, mount in assembly.mounts.items():
        acting = [(name, assembly.levels.number(name, strength, path)) for name, strength in strengths.items()]
        acting = [(name, number) for name, number in acting if number and name in mount.adapters.names()]
        if not acting:
            continue
        site, change = mount.site, _by_group(mount, acting)
        if change is not None:
            assembly.originals[path] = cast(QuantizedSite, site).shift(change)
            continue
        weight, bias = _folded(mount, acting)
        if anew is not None and isinstance(site, QuantizedSite):
            before = _pack(site, weight, anew, f"{assembly.component}.{path}".strip("."))
        else:
            own = nn.Parameter(weight.to(site.weight.dtype).contiguous(), requires_grad=False)
            before = put(site.module, [Held("_parameters", site.weight_name, own)])
        assembly.originals[path] = before
        if bias is not None and site.bias_name is not None:
            own = nn.Parameter(bias, requires_grad=False)
            before += put(site.module, [Held("_parameters", site.bias_name, own)])
    assembly.levels.baked = strengths
    assembly.levels.touch()


def _pack(site: QuantizedSite, weight: Tensor, anew: Requantized, path: str) -> list[Held]:
    """Packs a changed weight in place of the base's; returns what was there."""
    before = site.pack(weight)
    anew.sites.append(path)
    anew.off += float((weight - site.weight.to(weight.dtype)).square().sum())
    anew.norm += float(weight.square().sum())
    return before


@torch.no_grad()
def _folded(mount: Mount, acting: list[tuple[str, float]]) -> tuple[Tensor, Tensor | None]:
    """The changed weight in at least fp32, and the changed bias in its own type, or None where it is unchanged."""
    site = mount.site
    weight, bias = site.weight, site.bias
    if weight.device.type == "meta":
        raise DoesNotFit(f"the weight of {site.path} is offloaded or on the meta device; stop offloading, then bake")
    exact = torch.promote_types(weight.dtype, torch.float32)
    total, shift = weight.to(exact), None if bias is None else bias.to(exact)
    whole, offset = total, shift
    for name, number in acting:
        adapter = mount.adapters.get(name)
        assert adapter is not None
        delta = adapter(type(adapter).delta, whole, offset)
        if delta.weight is not None:
            total = total + delta.weight.to(exact) * number
        if delta.bias is not None:
            change = delta.bias.to(exact) * number
            shift = change if shift is None else shift + change
    unchanged = shift is None or shift is offset
    return total, None if unchanged else cast(Tensor, shift).to(weight.dtype)


@torch.no_grad()
def _by_group(mount: Mount, acting: list[tuple[str, float]]) -> Tensor | None:
    """``Σ s_i ΔW_i`` as one number per row and group, where the layer has groups and it is constant in each."""
    if not isinstance(mount.site, QuantizedSite):
        return None
    grid = mount.site.grid
    if grid is None:
        return None
    total: Tensor | None = None
    for name, number in acting:
        adapter = cast(Adapter, mount.adapters.get(name))
        change = adapter(type(adapter).by_group, grid.group)
        if change is None:
            return None
        total = change * number if total is None else total + change * number
    return total


def _restore(assembly: Assembly) -> None:
    for path, held in assembly.originals.items():
        module = assembly.mounts[path].site.module
        for table, name, tensor in held:
            getattr(module, table)[name] = tensor
    assembly.originals.clear()
    assembly.levels.baked = None
    assembly.levels.touch()


@in_turn
def unbake(model: Any) -> None:
    """Gives the base its original tensors back, the same objects bit for bit; the blend acts live again.

    Raises:
        DoesNotFit: nothing is baked.
    """
    baked = [assembly for assembly in assemblies(model).values() if assembly.baked is not None]
    if not baked:
        raise DoesNotFit("nothing is baked into the weights, so there is nothing to undo")
    for assembly in baked:
        _restore(assembly)
