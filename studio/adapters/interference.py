"""What the adapters of a blend do to each other: where they add up, where they undo each other, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from studio.adapters.contract.strength import Strength, StrengthLike
from studio.adapters.hosting.turns import turn
from studio.adapters.overlap import Overlap, by_block, joined, one_blend, overlaps, without_change
from studio.errors import NoEffect

__all__ = ["BURNS", "FIGHTS", "BlendReport", "blend_report", "cells", "heading", "warnings_of"]

BURNS: Final = 1.3
"""Growth (:attr:`Overlap.growth`) from which a place is said to burn: the blend moves it that much further than the
strongest of its adapters does by itself."""
FIGHTS: Final = -0.35
"""Cosine from which two adapters are said to undo each other: of two that are as strong, a fifth of what each does."""
_HEAVY: Final = 0.5  # change, as a part of the base's weights, from which one adapter by itself is said to be heavy
_SHOWN: Final = 4  # blocks that a sentence names


@dataclass(frozen=True, eq=False)
class BlendReport:
    """What the adapters of a blend do to each other.

    Attributes:
        strengths: the blend.
        silent: adapters of the blend that change no weight, and their methods: nothing can be told of those.
        sites: the layers that any adapter changes, in the order of the model.

    ``str()`` of it is a table with the advice below it.
    """

    strengths: dict[str, Strength]
    silent: dict[str, str]
    sites: tuple[Overlap, ...]

    @cached_property
    def blocks(self) -> tuple[Overlap, ...]:
        """The same by block (:func:`~studio.adapters.overlap.block_of`)."""
        return by_block(self.sites)

    @cached_property
    def whole(self) -> Overlap:
        """The same over the whole model."""
        return joined(self.sites, "")

    @cached_property
    def advice(self) -> list[str]:
        """What to look at, and what to do, in sentences; there is always one."""
        said = [*warnings_of(self.whole, self.blocks), *_heavy(self.blocks)]
        said += [
            f"{name} ({method}) changes no weight, so nothing can be told of it" for name, method in self.silent.items()
        ]
        return said or [_quiet(self.whole)]

    def facts(self) -> dict[str, Any]:
        """Returns all of it as plain numbers, lists and tables, for JSON."""
        return {
            "strengths": {name: _plain(strength) for name, strength in self.strengths.items()},
            "without_change": dict(self.silent),
            "whole": _facts(self.whole),
            "blocks": [_facts(block) for block in self.blocks],
            "sites": [_facts(site) for site in self.sites],
            "advice": list(self.advice),
        }

    def __str__(self) -> str:
        rows = [heading(self.whole), *(cells(place, self.whole) for place in (*self.blocks, self.whole))]
        wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, wide, strict=True)) for row in rows]
        return "\n".join([*(line.rstrip() for line in lines), "", *self.advice])


def blend_report(model: Any, blend: Mapping[str, StrengthLike] | str | None = None) -> BlendReport:
    """Tells what the adapters of a blend do to each other; nothing runs, and nothing of the model changes.

    Args:
        model: the model or pipeline.
        blend: the blend; None: the current one.

    Raises:
        UnknownName: an adapter that is not attached. BadConfig: an impossible strength.
        DoesNotFit: strengths differ by sample, moment or place, a blend is baked, or weights that are needed are
            offloaded.
        NoEffect: no adapter of the blend changes any weight.

    Example:
        >>> import torch, studio
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> for name in ("dog", "ink"):
        ...     _ = studio.attach(net, studio.BitFit(targets=("0",)), name=name)
        ...     _ = studio.state(net, name)["0.bias"].data.fill_(1.0)
        >>> report = studio.blend_report(net, {"dog": 1.0, "ink": 0.5})
        >>> f"{report.whole.cosines['dog', 'ink']:.3f}, {report.whole.growth:.3f}"
        '1.000, 1.500'
    """
    with turn(model):
        strengths = one_blend(model, blend)
        sites, silent = tuple(overlaps(model, strengths)), without_change(model, strengths)
    if not sites:
        named = ", ".join(f"{name} ({method})" for name, method in silent.items())
        what = f"{named} changes no weight" if silent else "no adapter of the blend acts"
        raise NoEffect(f"{what}, so there is nothing to compare; give adapters that change weights, at a strength")
    return BlendReport(strengths, silent, sites)


def warnings_of(whole: Overlap, blocks: tuple[Overlap, ...]) -> list[str]:
    """Returns sentences on what burns and what fights in a blend; none where all is well.

    Args:
        whole: the whole model. blocks: its blocks.
    """
    said, burning = [], [block for block in blocks if len(block.norms) > 1 and block.growth >= BURNS]
    if whole.growth >= BURNS:
        names = " and ".join(whole.norms)
        where = f", most in {_places(burning)}" if burning and len(burning) < len(blocks) else ""
        said.append(
            f"{names} add up: together they move the weights {whole.growth:.2f} times as far as the strongest by "
            f"itself{where}; where pictures burn, normalize the blend (normalize=True, --normalize) or lower the "
            "strengths"
        )
    for pair, cosine in whole.cosines.items():
        fighting = [block for block in blocks if block.cosines.get(pair, 0.0) <= FIGHTS]
        if cosine <= FIGHTS:
            said.append(
                f"{pair[0]} and {pair[1]} undo each other (cosine {cosine:+.2f}), most in {_places(fighting)}: neither "
                "will show in full; lower one of them, or let them act in different blocks or at different steps"
            )
    return said


def heading(whole: Overlap) -> tuple[str, ...]:
    """Returns what stands above the columns of :func:`cells`."""
    pairs = (f"{first}·{second}" for first, second in whole.cosines)
    return ("block", "layers", *whole.norms, *pairs, "together", "growth", "kept")


def cells(place: Overlap, whole: Overlap) -> tuple[str, ...]:
    """Returns a place as cells of a table: changes as parts of the base's norm, cosines, growth, and what is kept.

    Args:
        place: the place. whole: the whole model, whose adapters and pairs have a column each.
    """
    norms = (_share(place, place.norms.get(name)) for name in whole.norms)
    cosines = (_signed(place.cosines.get(pair)) for pair in whole.cosines)
    figures = (_share(place, place.total), f"{place.growth:.2f}", f"{place.kept:.2f}")
    return (place.place or "all", str(place.sites), *norms, *cosines, *figures)


def _share(place: Overlap, norm: float | None) -> str:
    if norm is None:
        return "-"
    part = place.relative(norm)
    return f"{norm:.3g}" if part is None else f"{part:.2%}"


def _signed(cosine: float | None) -> str:
    return "-" if cosine is None else f"{cosine:+.2f}"


def _places(blocks: list[Overlap]) -> str:
    names = [block.place for block in sorted(blocks, key=lambda block: -block.total)]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _heavy(blocks: tuple[Overlap, ...]) -> list[str]:
    """Sentences on adapters that change a block by a large part of what the base has there."""
    heavy: dict[str, list[Overlap]] = {}
    for block in blocks:
        for name, norm in block.norms.items():
            if (block.relative(norm) or 0.0) >= _HEAVY:
                heavy.setdefault(name, []).append(block)
    return [
        f"{name} by itself changes {_places(places)} by half of the base's own weights or more: it may burn alone"
        for name, places in heavy.items()
    ]


def _quiet(whole: Overlap) -> str:
    if len(whole.norms) == 1:
        return f"{next(iter(whole.norms))} acts alone: there is nothing that it could disturb"
    largest = max(whole.cosines.items(), key=lambda item: abs(item[1]))
    (first, second), cosine = largest
    return (
        f"they hardly meet (of all, {first} and {second} the most: cosine {cosine:+.2f}), and together move the "
        f"weights {whole.growth:.2f} times as far as the strongest by itself: the strengths can stay"
    )


def _facts(place: Overlap) -> dict[str, Any]:
    return {
        "place": place.place, "sites": place.sites, "base": place.base, "norms": place.norms,
        "relative": {name: place.relative(norm) for name, norm in place.norms.items()},
        "cosines": [[*pair, cosine] for pair, cosine in place.cosines.items()],
        "total": place.total, "kept": place.kept, "growth": place.growth,
    }  # fmt: skip


def _plain(strength: Strength) -> Any:
    return strength.value if strength == Strength(strength.value) else repr(strength)
