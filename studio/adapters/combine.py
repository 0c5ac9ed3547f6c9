"""combine: one new adapter out of several."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from studio.adapters.attach import install
from studio.adapters.blend import check_constant, read_blend
from studio.adapters.combining.layer import Made, combined_dense, combined_pairs, is_pair
from studio.adapters.combining.rules import COMBINES, Choices
from studio.adapters.contract.adapter import Adapter, AdapterConfig
from studio.adapters.contract.pattern import exactly
from studio.adapters.contract.ranked import any_rank
from studio.adapters.contract.strength import Strength, StrengthLike
from studio.adapters.hosting.attached import assemblies, check_unbaked, whole_path
from studio.adapters.hosting.turns import in_turn
from studio.adapters.methods.full import Full
from studio.adapters.methods.lora import LoRA
from studio.adapters.overlap import Overlap, joined, overlaps
from studio.adapters.sites.site import Site
from studio.errors import BadConfig, DoesNotFit

__all__ = ["CombineReport", "combine"]

_GIVEN: Final = {"density": None, "epsilon": None, "gamma": None, "signs": None}


@dataclass(frozen=True, kw_only=True)
class CombineReport:
    """What a combination is.

    Attributes:
        name: of the new adapter. rule: of COMBINES. method: ``"lora"`` or ``"full"``.
        parents: the adapters that it was made of, and their strengths.
        sites: how many layers it has. ranks: rank -> how many layers have it; empty for a full difference.
        parameters: how many numbers it has.
        error: ``‖D − D_k‖ / ‖D‖`` of all layers together, what the rank left out; 0 where nothing was.
        worst: the same of the layer where it is largest, and its path.
        cosines: two parents -> the cosine of what they change.
        kept: ``‖Σ s_i ΔW_i‖ / Σ ‖s_i ΔW_i‖``: what they leave of each other; None where a parent changes no weight.
    """

    name: str
    rule: str
    method: str
    parents: Mapping[str, Strength]
    sites: int
    ranks: Mapping[int, int] = field(default_factory=dict)
    parameters: int = 0
    error: float = 0.0
    worst: tuple[float, str] = (0.0, "")
    cosines: Mapping[tuple[str, str], float] = field(default_factory=dict)
    kept: float | None = None

    def __str__(self) -> str:
        ranks = f" of rank {', '.join(map(str, sorted(self.ranks)))}" if self.ranks else ""
        lost = f"; the rank leaves out {self.error:.2%} ({self.worst[0]:.2%} at {self.worst[1]})" if self.error else ""
        meet = "".join(
            f"; {one} and {other} meet at a cosine of {value:.2f}" for (one, other), value in self.cosines.items()
        )
        return (
            f"{self.name!r}: {self.method}{ranks} in {self.sites} layers, {self.parameters:,} numbers, by {self.rule} "
            f"of {', '.join(self.parents)}{lost}{meet}"
        )


@in_turn
@torch.no_grad()
def combine(
    model: Any,
    blend: Mapping[str, StrengthLike],
    *,
    method: str = "exact",
    rank: int | None = None,
    name: str = "both",
    density: float | None = None,
    epsilon: float | None = None,
    gamma: float | None = None,
    signs: str | None = None,
    seed: int | None = None,
) -> CombineReport:
    """Makes one new adapter out of several; it does not act until a blend names it.

    ``exact`` equals the live blend: factor pairs of any ranks become one LoRA whose rank is the sum of theirs, brought
    to ``rank`` by the best approximation there is (Eckart & Young); other kinds become a full difference, or a LoRA
    where a rank is asked for. :data:`COMBINES` has the other rules.

    Args:
        model: the model or pipeline.
        blend: the adapters and their strengths, per component and block too.
        method: a name of :data:`COMBINES`.
        rank: of the new adapter, >= 1; None: what comes out.
        name: of the new adapter.
        density: part of the numbers that is kept, in (0, 1]; None: 0.5.
        epsilon: of DELLA, how far the chance to be kept departs from the density; None: 0.1.
        gamma: of breadcrumbs, part of the largest numbers that is dropped; None: 0.01.
        signs: ``"total"`` or ``"frequency"``, how TIES finds the majority; None: ``"total"``.
        seed: of what is drawn (DARE, DELLA); None: 0.

    Raises:
        UnknownName: an adapter that is not attached, or no such method.
        BadConfig: no adapter, an impossible number, or one that the method does not heed.
        DoesNotFit: strengths that differ by sample, moment or place; adapters that change no weight; a baked blend; a
            method for factor pairs, and adapters that are none; a taken name.
        UnsupportedLayer: a layer that holds several weights in one tensor.

    Example:
        >>> import torch, studio
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> for one in ("dog", "ink"):
        ...     _ = studio.attach(net, studio.LoRA(rank=2, targets=("0",)), name=one)
        ...     _ = studio.state(net, one)["0.up"].data.normal_()
        >>> report = studio.combine(net, {"dog": 0.7, "ink": 0.4}, name="both")
        >>> dict(report.ranks)
        {4: 1}
        >>> x = torch.randn(1, 8)
        >>> studio.blend(net, {"dog": 0.7, "ink": 0.4}); live = net(x)
        >>> studio.blend(net, "both"); torch.allclose(net(x), live, atol=1e-6)
        True
    """
    check_unbaked(model, "combine")
    rule, choices = COMBINES[method], _choices(method, density, epsilon, gamma, signs, seed)
    if not isinstance(blend, Mapping) or not blend:
        raise BadConfig("combine takes a table of adapters and strengths, such as {'dog': 0.7, 'ink': 0.4}")
    if rank is not None and (not isinstance(rank, int) or isinstance(rank, bool) or rank < 1):
        raise BadConfig(f"rank={rank!r}: a rank is a whole number from 1 on")
    strengths = read_blend(model, blend)
    layers = _layers(model, strengths)
    low = rule.dense is None and all(is_pair(adapter) for _, parts in layers.values() for adapter, _ in parts)
    if rule.plain and not low:
        raise DoesNotFit(f"{method} is for factor pairs (LoRA and its kin); method='exact' takes adapters of any kind")
    make, generator = combined_pairs if low else combined_dense, choices.generator
    made = {}
    for number, (path, (site, parts)) in enumerate(layers.items()):
        generator.manual_seed((0 if seed is None else seed) + number)
        made[path] = make(site, parts, rule, choices, rank)
    facts = {"combined": json.dumps({"rule": method, "parents": {n: repr(s) for n, s in strengths.items()}})}
    with any_rank():
        tensors = {path: one.tensors for path, one in made.items()}
        install(model, _config(tensors), tensors, name=name, strength=0.0, metadata=facts)
    return _report(model, name, method, strengths, made)


def _choices(method: str, *given: Any) -> Choices:
    names = (*_GIVEN, "seed")
    told = {one: value for one, value in zip(names, given, strict=True) if value is not None}
    for one in told:
        if one not in COMBINES[method].takes:
            heeds = ", ".join(COMBINES[method].takes) or "none of these"
            raise BadConfig(f"{one}={told[one]!r} has no effect on {method}, which heeds {heeds}; leave it out")
    told.pop("seed", None)
    return Choices(generator=torch.Generator(), **told)


def _layers(model: Any, strengths: Mapping[str, Strength]) -> dict[str, tuple[Site, list[tuple[Adapter, float]]]]:
    """Path -> the layer, and the adapters that act there with their strengths."""
    for name, strength in strengths.items():
        check_constant(name, strength, "one adapter has one strength for all")
    found: dict[str, tuple[Site, list[tuple[Adapter, float]]]] = {}
    for component, assembly in assemblies(model).items():
        for path, mount in assembly.mounts.items():
            for name, strength in strengths.items():
                adapter = mount.adapters.get(name)
                number = 0.0 if adapter is None else assembly.levels.number(name, strength, path)
                if adapter is None or not number:
                    continue
                if not adapter.bakes:
                    raise DoesNotFit(
                        f"{name!r} is of {adapter.config.method}, which computes with activations and changes no "
                        "weight: it cannot be combined, but act beside others (blend)"
                    )
                found.setdefault(whole_path(component, path), (mount.site, []))[1].append((adapter, number))
    if not found:
        raise DoesNotFit("the strengths are 0 at every layer, so nothing is left to combine")
    return found


def _config(layers: Mapping[str, Mapping[str, Tensor]]) -> AdapterConfig:
    biased = any("bias" in tensors for tensors in layers.values())
    targets = (exactly(layers),)
    if any("down" not in tensors for tensors in layers.values()):
        return Full(targets=targets, use_bias=biased)
    ranks = {path: len(tensors["down"]) for path, tensors in layers.items()}
    plain = LoRA(targets=targets, use_bias=biased)
    return plain.regraded(ranks, dict.fromkeys(ranks, 1.0))


def _report(
    model: Any, name: str, method: str, strengths: Mapping[str, Strength], made: Mapping[str, Made]
) -> CombineReport:
    low = all("down" in one.tensors for one in made.values())
    lacking, whole = sum(one.lacking for one in made.values()), sum(one.whole for one in made.values())
    parts = {path: math.sqrt(one.lacking / one.whole) if one.whole else 0.0 for path, one in made.items()}
    worst = max(parts, key=lambda path: parts[path])
    places: Sequence[Overlap] = list(overlaps(model, strengths, base=False)) if len(strengths) > 1 else []
    both = joined(places, "") if places else None
    return CombineReport(
        name=name, rule=method, method=(LoRA if low else Full).method, parents=strengths, sites=len(made),
        ranks=Counter(len(one.tensors["down"]) for one in made.values()) if low else {},
        parameters=sum(tensor.numel() for one in made.values() for tensor in one.tensors.values()),
        error=math.sqrt(lacking / whole) if whole else 0.0, worst=(parts[worst], worst) if whole else (0.0, ""),
        cosines={} if both is None else both.cosines, kept=None if both is None else both.kept,
    )  # fmt: skip
