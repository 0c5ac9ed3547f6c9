"""The rules by which adapters become one: a registry. A new rule is one row here, and the function that it names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import torch
from torch import Tensor

from studio.adapters.combining.crosswise import crosswise
from studio.adapters.combining.knots import knots
from studio.adapters.combining.numbers import dare_linear, dare_ties, magnitude_prune, ties
from studio.adapters.combining.orthogonal import orthogonal
from studio.adapters.combining.pairs import Pair
from studio.adapters.combining.sparse import breadcrumbs, della
from studio.adapters.combining.sphere import karcher, model_stock, slerp
from studio.adapters.combining.ziplora import ziplora
from studio.adapters.contract.adapter import Factors
from studio.registry import Registry

__all__ = ["COMBINES", "Choices", "Rule"]


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What a rule may be told.

    Args:
        density: part of the numbers that is kept. epsilon: of :func:`~studio.adapters.combining.sparse.della`.
        gamma: of :func:`~studio.adapters.combining.sparse.breadcrumbs`. signs: how a majority is found.
        sides: of :func:`~studio.adapters.combining.orthogonal.orthogonal`.
        penalty: of :func:`~studio.adapters.combining.ziplora.ziplora`. generator: of what is drawn.
    """

    density: float = 0.5
    epsilon: float = 0.1
    gamma: float = 0.01
    signs: str = "total"
    sides: str = "outputs"
    penalty: float = 1.0
    generator: torch.Generator


Dense: TypeAlias = Callable[[Sequence[Tensor], Sequence[float], Choices], Tensor]
Numbers: TypeAlias = Callable[[Callable[[], Tensor], Sequence[float]], Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A rule; it is of one of five kinds.

    Args:
        title: what it makes, in a few words.
        numbers: ``(gram, strengths) -> c`` of ``Σ c_i D_i``, gram() being ``⟨D_i, D_j⟩``: a sum of pairs stays a pair.
        dense: ``(D, strengths, choices) -> D``, of changes of one shape; what comes out is no pair.
        pairs: ``(pairs, strengths, choices) -> pair``, for pairs alone.
        each: ``(pairs, strengths, choices) -> pairs'`` of ``Σ s_i D_i'``, for pairs alone: what is left of each.
        factors: ``(factors, strengths, choices) -> pair``, for pairs alone, whose scales are not in them.
        takes: names of the :class:`Choices` that it heeds, and ``"seed"``.
        compresses: whether it brings the sum to a rank, the largest of theirs where none is asked for.
        plain: whether all must be factor pairs. two: whether it is for two adapters.
        runs_on: whether draws go on from layer to layer, as torch's own generator does; else each layer begins anew.
        source: where it is from.
    """

    title: str
    numbers: Numbers | None = None
    dense: Dense | None = None
    pairs: Callable[[Sequence[Pair], Sequence[float], Choices], Pair] | None = None
    each: Callable[[Sequence[Pair], Sequence[float], Choices], list[Pair]] | None = None
    factors: Callable[[Sequence[Factors], Sequence[float], Choices], Pair] | None = None
    takes: tuple[str, ...] = ()
    compresses: bool = False
    plain: bool = False
    two: bool = False
    runs_on: bool = False
    source: str = ""


def _as_they_are(gram: Callable[[], Tensor], weights: Sequence[float]) -> Sequence[float]:
    return weights


COMBINES: Final[Registry[Rule]] = Registry("way to combine adapters")
_TIES = "https://arxiv.org/abs/2306.01708"
_DARE = "https://arxiv.org/abs/2311.03099"

COMBINES.add("exact", Rule(title="the sum Σ s_i ΔW_i, what the live blend does", numbers=_as_they_are))
COMBINES.add(
    "linear",
    Rule(title="the same sum under the name that others have for it", numbers=_as_they_are),
)
COMBINES.add(
    "cat",
    Rule(title="the same sum of factor pairs, one behind the other", numbers=_as_they_are, plain=True),
)
COMBINES.add(
    "svd",
    Rule(title="the sum, brought to the largest rank among them", numbers=_as_they_are, compresses=True),
)
COMBINES.add(
    "ties",
    Rule(
        title="the mean of those whose sign is the majority's, small numbers first set to 0",
        dense=lambda changes, weights, choices: ties(changes, weights, choices.density, choices.signs),
        takes=("density", "signs"),
        source=_TIES,
    ),
)
COMBINES.add(
    "dare_linear",
    Rule(
        title="the sum after numbers are dropped at random and the rest is scaled up",
        dense=lambda changes, weights, choices: dare_linear(changes, weights, choices.density, choices.generator),
        takes=("density", "seed"),
        source=_DARE,
    ),
)
COMBINES.add(
    "dare_ties",
    Rule(
        title="DARE's dropping, then TIES' election of signs",
        dense=lambda changes, weights, choices: dare_ties(
            changes, weights, choices.density, choices.signs, choices.generator
        ),
        takes=("density", "signs", "seed"),
        source=_DARE,
    ),
)
COMBINES.add(
    "magnitude_prune",
    Rule(
        title="the sum after the smaller numbers of each are set to 0",
        dense=lambda changes, weights, choices: magnitude_prune(changes, weights, choices.density),
        takes=("density",),
    ),
)
COMBINES.add(
    "della",
    Rule(
        title="numbers dropped by their place in their row, then an election of signs",
        dense=lambda changes, weights, choices: della(
            changes, weights, choices.density, choices.epsilon, choices.generator
        ),
        takes=("density", "epsilon", "seed"),
        source="https://arxiv.org/abs/2406.11617",
    ),
)
COMBINES.add(
    "breadcrumbs",
    Rule(
        title="the sum without the largest and the smallest numbers of each",
        dense=lambda changes, weights, choices: breadcrumbs(changes, weights, choices.density, choices.gamma),
        takes=("density", "gamma"),
        source="https://arxiv.org/abs/2312.06795",
    ),
)
COMBINES.add(
    "slerp",
    Rule(title="from one to the other along the arc between them", numbers=lambda gram, s: slerp(gram(), s), two=True),
)
COMBINES.add("karcher", Rule(title="the mean of several on the sphere", numbers=lambda gram, s: karcher(gram(), s)))
COMBINES.add(
    "model_stock",
    Rule(
        title="the mean, drawn back to the base by how little they agree",
        numbers=lambda gram, s: model_stock(gram(), s),
        source="https://arxiv.org/abs/2403.19522",
    ),
)
COMBINES.add(
    "knots",
    Rule(
        title="TIES in the basis that they have in common",
        pairs=lambda pairs, weights, choices: knots(pairs, weights, choices.density, choices.signs),
        takes=("density", "signs"),
        plain=True,
        source="https://arxiv.org/abs/2410.19735",
    ),
)
COMBINES.add(
    "orthogonal",
    Rule(
        title="the sum after each has lost what those before it do already",
        each=lambda pairs, weights, choices: orthogonal(pairs, choices.sides),
        takes=("sides",),
        plain=True,
        source="https://arxiv.org/abs/2312.02432",
    ),
)
COMBINES.add(
    "ziplora",
    Rule(
        title="the sum of columns that are weighed so that they do not meet",
        each=lambda pairs, weights, choices: ziplora(pairs, weights, choices.penalty),
        takes=("penalty",),
        plain=True,
        source="https://arxiv.org/abs/2311.13600",
    ),
)


def _of_factors(rule: str) -> Callable[[Sequence[Factors], Sequence[float], Choices], Pair]:
    def made(read: Sequence[Factors], weights: Sequence[float], choices: Choices) -> Pair:
        pairs = [(one.down.flatten(1).double(), one.up.double()) for one in read]
        scales = [one.scale * weight for one, weight in zip(read, weights, strict=True)]
        return crosswise(rule, pairs, scales, choices.density, choices.signs, choices.generator)

    return made


_PEFT: Final = {
    "linear": (),
    "ties": ("density", "signs"),
    "dare_linear": ("density", "seed"),
    "dare_ties": ("density", "signs", "seed"),
    "magnitude_prune": ("density",),
}
for _name, _takes in _PEFT.items():
    COMBINES.add(
        f"peft-{_name}",
        Rule(
            title=f"PEFT's {_name}, on each factor by itself: it mixes the adapters crosswise and is no sum",
            factors=_of_factors(_name),
            takes=_takes,
            plain=True,
            runs_on=True,
            source="https://github.com/huggingface/peft",
        ),
    )
for _name in ("ties", "dare_linear", "dare_ties", "magnitude_prune"):
    COMBINES.add(
        f"peft-{_name}_svd",
        Rule(
            title=f"PEFT's {_name}_svd: {_name} on the changes, brought to the largest rank among them",
            dense=COMBINES[_name].dense,
            takes=_PEFT[_name],
            compresses=True,
            runs_on=True,
            source="https://github.com/huggingface/peft",
        ),
    )
