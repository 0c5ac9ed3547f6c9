"""The trainers' own lesson on a language model that is a blueprint."""

from __future__ import annotations

from typing import Any, Final

from torch import nn

from studio.adapters.tokens.contract import TokenConfig
from studio.errors import DoesNotFit
from studio.families.language import LanguageBase
from studio.families.language.kinds import Kind
from studio.planning.blueprint import Blueprint
from studio.planning.language import reader_of
from studio.trainers.forecast.asked import Asked
from studio.trainers.forecast.stage import Scene, reference_of
from studio.trainers.forecast.still import Blank, Still
from studio.trainers.language.rehearsal import Rehearsal, Stand
from studio.trainers.language.rehearsals import REHEARSALS, USUAL_TASKS
from studio.trainers.recipes import RECIPES, SMALL_BASE, Recipe

__all__ = ["language_scene", "text_recipe"]

_ENDLESS: Final = 10**9  # of a model whose config names no context


def text_recipe(task: str, model: nn.Module) -> Recipe:
    """Returns the defaults of a training on a language model.

    Args:
        task: the task's name. model: the model.
    """
    numbers = sum(parameter.numel() for parameter in model.parameters())
    return RECIPES[task, "small" if numbers < SMALL_BASE else "large"]


def language_scene(drawn: Blueprint, asked: Asked) -> Scene:
    """Returns what a training on texts plays.

    Args:
        drawn: the base, opened as what its task needs. asked: the settings, all filled.

    Raises:
        DoesNotFit: samples that are longer than the base reads, or a base that the task cannot train.
    """
    model: Any = drawn.language
    assert drawn.kind is not None, "a language model"
    name = asked.task or USUAL_TASKS[drawn.kind.name]
    model.to(asked.type_of(drawn.dtype)).requires_grad_(False)
    task, base = REHEARSALS[name], _base(drawn, drawn.kind)
    recipe = text_recipe(name, model)
    shared: dict[str, Any] = dict(
        base=base, adapter=asked.config(recipe), name="forecast", plan=asked.loop(recipe),
        rates={"": recipe.learning_rate}, settings={}, recorded={}, inputs={}, origin={}, say=print,
    )  # fmt: skip
    own = {**task.options, **asked.own}
    length = _length(base, shared["adapter"], task, asked)
    lesson = task.lesson(Stand(base, shared, length, asked.answer, own))
    if lesson.head and isinstance(lesson.adapter, TokenConfig):
        raise DoesNotFit(f"{lesson.adapter.method} trains no layer, and {name} trains a head too: take another")
    lesson.draws = Still(0)
    least = task.least(base, own)
    return Scene(
        lesson, whole=asked.whole, sizes={"length": length, "least": least}, reference=reference_of(lesson),
    )  # fmt: skip


def _base(drawn: Blueprint, kind: Kind) -> LanguageBase:
    """The base with a tokenizer that reads nothing; with its own where the sizes of pictures are its matter."""
    model: Any = drawn.language
    processor: Any = None
    if kind.name == "vision":
        assert drawn.folder is not None, "none is known by name"
        processor = reader_of(drawn.folder)
    pad = getattr(model.config, "pad_token_id", None)
    tokenizer = Blank(_ENDLESS, pad if isinstance(pad, int) else 0) if processor is None else processor.tokenizer
    base = LanguageBase(model, tokenizer, drawn.name, kind=kind, processor=processor)
    if kind.head:
        model.config.pad_token_id = base.pad  # as of what is opened
    return base


def _length(base: LanguageBase, adapter: Any, task: Rehearsal, asked: Asked) -> int:
    """Tokens of a text."""
    room = base.context - (adapter.tokens if isinstance(adapter, TokenConfig) else 0)
    if (asked.length or 0) > room:
        raise DoesNotFit(f"length={asked.length}: {base.id} reads {room} tokens; give at most that")
    return asked.length or min(task.length, room)
