"""What to try where adapters that become one do not go together: strengths, and rules."""

from __future__ import annotations

from typing import Final

from studio.adapters.interference import BURNS, FIGHTS, BlendReport
from studio.adapters.overlap import Overlap

__all__ = ["suggestions"]

_ALIKE: Final = 0.5  # cosine from which two are said to do much the same
_UNEQUAL: Final = 4.0  # times as far as another: the weaker one hardly shows
_SHOWN: Final = 3  # blocks that a sentence names


def suggestions(report: BlendReport, rule: str = "exact") -> list[str]:
    """Returns which strengths or which rule to try for a combination, in sentences; there is always one.

    Args:
        report: what the adapters do to each other. rule: how they are combined.

    Example:
        >>> import torch, studio
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> for name in ("dog", "ink"):
        ...     _ = studio.attach(net, studio.BitFit(targets=("0",)), name=name)
        ...     _ = studio.state(net, name)["0.bias"].data.fill_(1.0)
        >>> print(suggestions(studio.blend_report(net, {"dog": 1.0, "ink": 1.0}))[0])
        dog and ink do much the same (cosine +1.00): a mean keeps it at one's strength, --method slerp or karcher
    """
    whole = report.whole
    if not whole.norms:
        return ["no adapter changes anything at these strengths: there is nothing that could be disturbed"]
    if len(whole.norms) < 2:
        return [f"{next(iter(whole.norms))} acts alone: there is nothing that it could disturb"]
    said = [line for pair, cosine in whole.cosines.items() for line in _of_pair(report, pair, cosine, rule)]
    if whole.growth >= BURNS and not any(value >= _ALIKE for value in whole.cosines.values()):
        lower = ", ".join(f"{name} {_number(report, name, whole)}" for name in whole.norms)
        said.append(
            f"together they move the weights {whole.growth:.2f} times as far as the strongest by itself; where "
            f"pictures burn, try the strengths {lower}"
        )
    strongest = max(whole.norms, key=lambda name: whole.norms[name])
    for name, norm in whole.norms.items():
        ratio = whole.norms[strongest] / norm
        if ratio >= _UNEQUAL:
            said.append(
                f"{strongest} moves the weights {ratio:.1f} times as far as {name}, which will hardly show: raise "
                f"{name} or lower {strongest}"
            )
    return said or [f"they hardly meet, and nothing is undone: {rule} can stay, and so can the strengths"]


def _of_pair(report: BlendReport, pair: tuple[str, str], cosine: float, rule: str) -> list[str]:
    first, second = pair
    fights = [block for block in report.blocks if block.cosines.get(pair, 0.0) <= FIGHTS]
    if cosine >= _ALIKE and rule not in ("slerp", "karcher"):
        means = "slerp or karcher" if len(report.whole.norms) == 2 else "karcher"  # slerp goes between two
        return [
            f"{first} and {second} do much the same (cosine {cosine:+.2f}): a mean keeps it at one's strength, "
            f"--method {means}"
        ]
    if fights and rule not in ("orthogonal", "ties"):
        lost = min(block.kept for block in fights)
        return [
            f"{first} and {second} undo each other in {_places(fights)} (of what both do there, {lost:.0%} is left): "
            f"try --method orthogonal, which keeps {first} whole, or ties, or give one of them strength 0 in these "
            "blocks"
        ]
    return []


def _number(report: BlendReport, name: str, whole: Overlap) -> str:
    return f"{report.strengths[name].value / whole.growth:.2f}"


def _places(blocks: list[Overlap]) -> str:
    names = [block.place for block in sorted(blocks, key=lambda block: -block.total)]
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
