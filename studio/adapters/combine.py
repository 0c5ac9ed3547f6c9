"""combine: one new adapter out of several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from studio.adapters.attach import install
from studio.adapters.blend import check_constant, read_blend
from studio.adapters.combination import Combination, CombineReport, digest, read_way
from studio.adapters.combining.layer import Part
from studio.adapters.contract.adapter import Adapter
from studio.adapters.contract.ranked import any_rank
from studio.adapters.contract.strength import Strength, StrengthLike
from studio.adapters.hosting.attached import assemblies, check_unbaked, whole_path
from studio.adapters.hosting.turns import in_turn
from studio.adapters.info import adapters, state
from studio.adapters.sites.site import Site
from studio.errors import BadConfig, DoesNotFit
from studio.families import named_parts

__all__ = ["CombineReport", "check_changes_weights", "combine"]


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
    sides: str | None = None,
    penalty: float | None = None,
    seed: int | None = None,
) -> CombineReport:
    """Makes one new adapter out of several; it does not act until a blend names it.

    ``exact`` equals the live blend: factor pairs of any ranks become one LoRA whose rank is the sum of theirs, brought
    to ``rank`` by the best approximation there is (Eckart & Young); other kinds become a full difference, or a LoRA
    where a rank is asked for. :data:`COMBINES` has the other rules. Its metadata name the parents, with their strengths
    and the hashes of their tensors, and the rule.

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
        sides: ``"outputs"``, ``"inputs"`` or ``"both"``, where ``orthogonal`` keeps adapters apart; None: outputs.
        penalty: of ziplora, what columns that meet cost, from 0 on; None: 1.
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
    told = dict(density=density, epsilon=epsilon, gamma=gamma, signs=signs, sides=sides, penalty=penalty, seed=seed)
    way = read_way(method, rank, told)
    if not isinstance(blend, Mapping) or not blend:
        raise BadConfig("combine takes a table of adapters and strengths, such as {'dog': 0.7, 'ink': 0.4}")
    strengths = read_blend(model, blend)
    layers = _layers(model, strengths)
    combination = Combination(way, strengths, [one for _, parts in layers.values() for one in parts])
    for path, (site, parts) in layers.items():
        combination.add(path, site, parts)
    own = adapters(model)
    hashes = {one: digest(state(model, one)) for one in strengths}
    facts = combination.facts(hashes, [own[one].metadata for one in strengths])
    with any_rank():
        install(model, combination.config, combination.tensors, name=name, strength=0.0, metadata=facts)
    return combination.report(name)


def check_changes_weights(name: str, adapter: Adapter) -> None:
    """Checks that an adapter can be combined.

    Args:
        name: of the adapter. adapter: itself, at one layer.

    Raises:
        DoesNotFit: it computes with activations.
    """
    if not adapter.bakes:
        raise DoesNotFit(
            f"{name!r} is of {adapter.config.method}, which computes with activations and changes no weight: it cannot "
            "be combined, but act beside others (blend)"
        )


def _layers(model: Any, strengths: Mapping[str, Strength]) -> dict[str, tuple[Site, list[Part]]]:
    """Path -> the layer, and the adapters that act there with their strengths, in the order of the model."""
    for name, strength in strengths.items():
        check_constant(name, strength, "one adapter has one strength for all")
    found: dict[str, tuple[Site, list[Part]]] = {}
    for component, assembly in assemblies(model).items():
        places = {path: place for place, (path, _) in enumerate(named_parts(assembly.root))}
        mounts = sorted(assembly.mounts.items(), key=lambda item: places.get(item[0], len(places)))
        for path, mount in mounts:
            for name, strength in strengths.items():
                adapter = mount.adapters.get(name)
                number = 0.0 if adapter is None else assembly.levels.number(name, strength, path)
                if adapter is None or not number:
                    continue
                check_changes_weights(name, adapter)
                whole = whole_path(component, path)
                found.setdefault(whole, (mount.site, []))[1].append(Part(name, adapter, number))
    if not found:
        raise DoesNotFit("the strengths are 0 at every layer, so nothing is left to combine")
    return found
