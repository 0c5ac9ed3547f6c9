"""What every method is and what it covers: read from the registry, and found by trying each on small layers."""

from __future__ import annotations

import inspect
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch import nn

from studio.adapters import METHODS, AdapterConfig, attach, detach
from studio.errors import StudioError

__all__ = ["LAYERS", "Coverage", "MethodRow", "coverage", "markdown", "survey"]

WIDTH: Final = 4096
"""Side of the layer whose trained parameters the table states."""


def _gpt2() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return Conv1D(64, 256)


LAYERS: Final[Mapping[str, Callable[[], nn.Module]]] = {
    "Linear": lambda: nn.Linear(256, 64),
    "GPT-2 Conv1D": _gpt2,
    "Embedding": lambda: nn.Embedding(48, 256),
    "Conv1d": lambda: nn.Conv1d(256, 64, 3, stride=2),
    "Conv2d 1×1": lambda: nn.Conv2d(256, 64, 1),
    "Conv2d 3×3 strided": lambda: nn.Conv2d(256, 64, 3, stride=2),
    "Conv2d dilated": lambda: nn.Conv2d(256, 64, 3, dilation=2),
    "Conv2d circular": lambda: nn.Conv2d(256, 64, 3, padding=1, padding_mode="circular"),
    "Conv2d grouped": lambda: nn.Conv2d(256, 64, 3, groups=2),
    "Conv3d": lambda: nn.Conv3d(256, 64, 3),
    "MultiheadAttention": lambda: nn.MultiheadAttention(256, 2),
    "LayerNorm": lambda: nn.LayerNorm(256),
}
"""Kinds of layers, with a small one of each."""


@dataclass(frozen=True)
class Coverage:
    """What a method does with a kind of layer; ``refusal`` is what it says instead, or ""."""

    layer: str
    refusal: str


@dataclass(frozen=True)
class MethodRow:
    """What the table says about a method.

    Attributes:
        name: registry name. title: name of its config class.
        formula: the first formula of its docstring. papers: title and address of each paper.
        parameters: what its default config trains in a Linear of 4096 × 4096 (a LayerNorm of 4096 where it covers that
            alone), or None where it sits on a whole model.
        bakes: whether it can be folded into weights. per_sample: whether samples of a batch can have strengths of their
            own. peft: PEFT's word for it, or "".
    """

    name: str
    title: str
    formula: str
    papers: tuple[tuple[str, str], ...]
    parameters: int | None
    bakes: bool
    per_sample: bool
    peft: str


def survey() -> Iterator[MethodRow]:
    """Describes every registered method.

    Example:
        >>> row = next(row for row in survey() if row.name == "lora")
        >>> row.formula, row.parameters
        ("W' = W + s · up @ down", 65536)
    """
    for name in METHODS:
        config = METHODS[name]
        adapter = config.adapter
        yield MethodRow(
            name, config.__name__, formula_of(config), papers_of(config), _parameters(config),
            adapter.bakes, adapter.per_sample, adapter.peft.type,
        )  # fmt: skip


def formula_of(config: type[AdapterConfig]) -> str:
    """Returns the first formula of a config's docstring: the first text in double backquotes with an ``=``."""
    found = re.findall(r"``([^`]+)``", inspect.getdoc(config) or "")
    return next((formula for formula in found if "=" in formula), "")


def papers_of(config: type[AdapterConfig]) -> tuple[tuple[str, str], ...]:
    """Returns title and address of each paper under ``References`` in a config's docstring."""
    _, _, references = (inspect.getdoc(config) or "").partition("References:")
    text = " ".join(references.partition("Example:")[0].split()).replace("| ", "")
    found = re.findall(r"(.+?),? (https://[^\s,]+)", text)
    return tuple((title.strip(" ,"), address.rstrip(".")) for title, address in found)


def coverage(method: str) -> list[Coverage]:
    """Tries a method on every kind of layer.

    Args:
        method: registry name.

    Returns:
        One entry per kind; a refusal is the sentence that the user gets.
    """
    return [Coverage(layer, _refusal(METHODS[method], make)) for layer, make in LAYERS.items()]


def _refusal(config: type[AdapterConfig], make: Callable[[], nn.Module]) -> str:
    with torch.random.fork_rng(devices=[]):
        model = _alone(make())
    try:
        attach(model, config.usual(targets=("layer",)))
    except StudioError as refused:
        return str(refused)
    detach(model)
    return ""


def _alone(layer: nn.Module) -> nn.Module:
    """A model of one layer, which is called ``layer``."""
    return nn.Sequential(OrderedDict(layer=layer))


def _parameters(config: type[AdapterConfig]) -> int | None:
    for make in (partial(nn.Linear, WIDTH, WIDTH), partial(nn.LayerNorm, WIDTH)):
        model = _alone(torch.nn.utils.skip_init(make.func, *make.args))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.01)
        try:
            return attach(model, config.usual(targets=("layer",))).parameters
        except StudioError:
            continue
    return None


def markdown() -> str:
    """Writes ``docs/methods.md``: the table of methods, and which covers what."""
    rows = list(survey())
    lines = [
        "# The methods",
        "",
        "Made from the registry by `studio methods --markdown > docs/methods.md`; [which to choose](choosing.md).",
        "",
        f"*Parameters* are what the default config trains in a Linear layer of {WIDTH} × {WIDTH} (a norm of {WIDTH} "
        "for methods that act on norms alone). *Per sample*: each sample of a batch can have its own strength.",
        "",
        *_table_of_methods(rows),
        "",
        "## Layers",
        "",
        "✓: covered, and the contract test proves it. A number: refused, with this reason.",
        "",
        *_table_of_layers(rows),
        "",
    ]
    return "\n".join(lines)


def _table_of_methods(rows: Sequence[MethodRow]) -> Iterator[str]:
    yield "| method | formula | parameters | bakes | per sample | PEFT | paper |"
    yield "|---|---|---:|---|---|---|---|"
    for row in rows:
        papers = "; ".join(f"[{title}]({address})" for title, address in row.papers)
        count = "–" if row.parameters is None else f"{row.parameters:,}"
        marks = ["yes" if mark else "no" for mark in (row.bakes, row.per_sample)]
        formula = row.formula.replace("|", "\\|")
        cells = [f"`{row.title}`", f"`{formula}`", count, *marks, row.peft or "–", papers]
        yield f"| {' | '.join(cells)} |"


def _table_of_layers(rows: Sequence[MethodRow]) -> Iterator[str]:
    """The marks of every method on every layer, and below them the reasons that their numbers stand for."""
    reasons: dict[str, int] = {}
    yield f"| method | {' | '.join(LAYERS)} |"
    yield f"|---|{':-:|' * len(LAYERS)}"
    for row in rows:
        cells = []
        for cell in coverage(row.name):
            number = reasons.setdefault(cell.refusal, len(reasons) + 1) if cell.refusal else 0
            cells.append(f"{number}" if number else "✓")
        yield f"| `{row.name}` | {' | '.join(cells)} |"
    yield ""
    yield from (f"{number}. {reason}" for reason, number in reasons.items())
