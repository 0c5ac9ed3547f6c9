"""Adapters that become one, layer by layer: by which rule, what comes of it, and what is said about it."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch import Tensor

from studio.adapters.combining.layer import Made, Part, combined_dense, combined_pairs, is_pair
from studio.adapters.combining.rules import COMBINES, Choices, Rule
from studio.adapters.contract.adapter import AdapterConfig, generator_for
from studio.adapters.contract.pattern import exactly
from studio.adapters.contract.strength import Strength
from studio.adapters.interference import BlendReport
from studio.adapters.methods.full import Full
from studio.adapters.methods.lora import LoRA
from studio.adapters.overlap import Overlap, measured
from studio.adapters.sites.site import Site
from studio.adapters.suggestion import suggestions
from studio.config import finite, own_number
from studio.errors import BadConfig, DoesNotFit

__all__ = ["CombineReport", "Combination", "Way", "digest", "read_way"]

_NUMBERS: Final = ("density", "epsilon", "gamma", "penalty")  # of what rules may be told
_SHARED: Final = ("base", "base_hash")  # facts that the new adapter has where all its parents have them alike


@dataclass(frozen=True, kw_only=True)
class Way:
    """How adapters become one.

    Attributes:
        method: a name of COMBINES. rank: of the result; None: what comes out.
        told: what was chosen for the rule, by name. seed: of what is drawn.
    """

    method: str
    rank: int | None
    told: Mapping[str, Any]
    seed: int

    @property
    def rule(self) -> Rule:
        """The rule that is meant."""
        return COMBINES[self.method]


def read_way(method: str, rank: int | None, told: Mapping[str, Any]) -> Way:
    """Reads how adapters are to become one.

    Args:
        method: a name of COMBINES. rank: of the result. told: what a rule may be told; None: nothing was said.

    Raises:
        UnknownName: no such method. BadConfig: an impossible rank, a choice that the method does not heed, or one that
            is no number.
    """
    rule, given = COMBINES[method], {name: own_number(value) for name, value in told.items() if value is not None}
    for one in given:
        if one not in rule.takes:
            heeds = ", ".join(rule.takes) or "none of these"
            raise BadConfig(f"{one}={given[one]!r} has no effect on {method}, which heeds {heeds}; leave it out")
        if one in _NUMBERS and not finite(given[one]):
            raise BadConfig(f"{one}={given[one]!r}: it is a finite number")
    seed = given.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise BadConfig(f"seed={seed!r}: a seed is a whole number from 0 to 2**63 - 1")
    if rank is not None and (not isinstance(rank, int) or isinstance(rank, bool) or rank < 1):
        raise BadConfig(f"rank={rank!r}: a rank is a whole number from 1 on")
    return Way(method=method, rank=rank, told=given, seed=seed)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Returns the SHA-256 of an adapter's tensors, in the order of their names, as fp32: the same in every format.

    Args:
        tensors: ``path.name`` -> tensor.
    """
    found = hashlib.sha256()
    for key in sorted(tensors):
        found.update(key.encode())
        found.update(tensors[key].detach().float().cpu().contiguous().numpy().data)
    return found.hexdigest()


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
        left: parent -> ``‖D_i'‖ / ‖D_i‖``, what a rule that takes something of each has left; empty for the others.
        conflict: what the parents do to each other, by block and layer.
    """

    name: str
    rule: str
    method: str
    parents: Mapping[str, Strength]
    sites: int
    conflict: BlendReport = field(repr=False)
    ranks: Mapping[int, int] = field(default_factory=dict)
    parameters: int = 0
    error: float = 0.0
    worst: tuple[float, str] = (0.0, "")
    left: Mapping[str, float] = field(default_factory=dict)

    @property
    def cosines(self) -> Mapping[tuple[str, str], float]:
        """Two parents -> the cosine of what they change."""
        return self.conflict.whole.cosines

    @property
    def kept(self) -> float:
        """``‖Σ s_i ΔW_i‖ / Σ ‖s_i ΔW_i‖``: what the parents leave of each other."""
        return self.conflict.whole.kept

    @property
    def suggestions(self) -> list[str]:
        """Which strengths or which rule to try, in sentences; there is always one."""
        return suggestions(self.conflict, self.rule)

    def __str__(self) -> str:
        ranks = f" of rank {', '.join(map(str, sorted(self.ranks)))}" if self.ranks else ""
        lost = f"; the rank leaves out {self.error:.2%} ({self.worst[0]:.2%} at {self.worst[1]})" if self.error else ""
        meet = "".join(
            f"; {one} and {other} meet at a cosine of {value:.2f}" for (one, other), value in self.cosines.items()
        )
        left = "".join(f"; {part:.2%} of {one} is left" for one, part in self.left.items() if part < 1)
        return (
            f"{self.name!r}: {self.method}{ranks} in {self.sites} layers, {self.parameters:,} numbers, by {self.rule} "
            f"of {', '.join(self.parents)}{lost}{left}{meet}"
        )


class Combination:
    """The adapter that several become, which grows layer by layer.

    Args:
        way: how. strengths: of each adapter. adapters: all of them, at every layer where they act.

    Raises:
        BadConfig: a rule for two adapters, and not two. DoesNotFit: one for factor pairs, and adapters that are none.
    """

    def __init__(self, way: Way, strengths: Mapping[str, Strength], parts: Sequence[Part]) -> None:
        self.way, self.strengths = way, strengths
        if way.rule.two and len(strengths) != 2:
            raise BadConfig(f"{way.method} goes from one adapter to one other, and {len(strengths)} are given")
        told = {name: value for name, value in way.told.items() if name != "seed"}
        self._choices = Choices(generator=torch.Generator().manual_seed(way.seed), **told)
        self._low = way.rule.dense is None and all(is_pair(one.adapter) for one in parts)
        if way.rule.plain and not self._low:
            odd = next(one.adapter.config.method for one in parts if not is_pair(one.adapter))
            raise DoesNotFit(
                f"{way.method} is for factor pairs (LoRA and its kin), and {odd} is none; method='exact' takes "
                "adapters of any kind"
            )
        self._made: dict[str, Made] = {}
        self._places: list[Overlap] = []

    def add(self, path: str, site: Site, parts: Sequence[Part]) -> None:
        """Combines what acts at one layer.

        Args:
            path: of the layer, its component in front. site: the layer. parts: what acts there.

        Raises:
            BadConfig: an impossible choice. DoesNotFit: a weight that is needed is not at hand.
            UnsupportedLayer: a layer that holds several weights in one tensor.
        """
        choices = self._choices
        if not self.way.rule.runs_on:  # a layer's draws depend on the seed and its path alone
            choices = replace(choices, generator=generator_for(self.way.seed, "combine", path))
        make = combined_pairs if self._low else combined_dense
        self._made[path] = make(site, parts, self.way.rule, choices, self.way.rank)
        names, levels = tuple(self.strengths), {one.name: one.strength for one in parts}
        acting = {names.index(one.name): one.adapter for one in parts}
        self._places += measured([path], [(site, acting)], [[levels.get(name, 0.0) for name in names]], names)

    @property
    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Path -> tensor name -> tensor, fp32."""
        return {path: one.tensors for path, one in self._made.items()}

    @property
    def config(self) -> AdapterConfig:
        """A LoRA's of scale 1, or a full difference's."""
        biased = any("bias" in one.tensors for one in self._made.values())
        targets = (exactly(self._made),)
        if not self._all_low:
            return Full(targets=targets, use_bias=biased)
        ranks = {path: len(one.tensors["down"]) for path, one in self._made.items()}
        return LoRA(targets=targets, use_bias=biased).regraded(ranks, dict.fromkeys(ranks, 1.0))

    @property
    def _all_low(self) -> bool:
        return all("down" in one.tensors for one in self._made.values())

    def facts(self, hashes: Mapping[str, str], known: Sequence[Mapping[str, str]]) -> dict[str, str]:
        """Returns what the new adapter says about where it comes from, and the base that all its parents name.

        Args:
            hashes: of the parents' tensors (:func:`digest`), by name. known: what each parent says about itself.
        """
        parents = {name: _parent(one, hashes[name]) for name, one in self.strengths.items()}
        shared = {
            fact: known[0][fact] for fact in _SHARED if len({one.get(fact) for one in known}) == 1 and fact in known[0]
        }
        said = {"rule": self.way.method, "rank": self.way.rank, **self.way.told, "parents": parents}
        return {**shared, "combined": json.dumps({key: value for key, value in said.items() if value is not None})}

    def report(self, name: str) -> CombineReport:
        """Returns what came of it.

        Args:
            name: of the new adapter.
        """
        made, low = self._made, self._all_low
        lacking, whole = sum(one.lacking for one in made.values()), sum(one.whole for one in made.values())
        parts = {path: math.sqrt(one.lacking / one.whole) if one.whole else 0.0 for path, one in made.items()}
        worst = max(parts, key=lambda path: parts[path])
        return CombineReport(
            name=name, rule=self.way.method, method=(LoRA if low else Full).method, parents=self.strengths,
            sites=len(made), conflict=BlendReport(dict(self.strengths), {}, tuple(self._places)),
            ranks=Counter(len(one.tensors["down"]) for one in made.values()) if low else {},
            parameters=sum(tensor.numel() for one in made.values() for tensor in one.tensors.values()),
            error=math.sqrt(lacking / whole) if whole else 0.0, worst=(parts[worst], worst) if whole else (0.0, ""),
            left=self._left(),
        )  # fmt: skip

    def _left(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for name in self.strengths:
            squares = [one.left[name] for one in self._made.values() if name in one.left]
            before = sum(whole for _, whole in squares)
            if before:
                found[name] = math.sqrt(sum(left for left, _ in squares) / before)
        return found


def _parent(strength: Strength, tensors: str) -> dict[str, Any]:
    """A parent as it is stated: what is not said is as it was trained."""
    said = {"strength": strength.value, "components": dict(strength.components), "blocks": dict(strength.blocks)}
    return {key: value for key, value in said.items() if value != {}} | {"sha256": tensors}
