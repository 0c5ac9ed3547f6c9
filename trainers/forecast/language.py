"""The trainers' own lesson on a causal language model that is a blueprint, and one on pairs of texts beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from studio.adapters.tokens.contract import TokenConfig
from studio.errors import DoesNotFit
from studio.families.language import LanguageBase
from studio.planning.blueprint import Blueprint
from studio.trainers.forecast.asked import Asked
from studio.trainers.forecast.stage import Scene
from studio.trainers.forecast.still import Blank, Still
from studio.trainers.language.causal import Causal
from studio.trainers.language.texts import TokenRow
from studio.trainers.loop.task import Lesson, Loss
from studio.trainers.recipes import RECIPES, SMALL_BASE, Recipe

__all__ = ["LENGTH", "language_scene", "text_recipe"]

LENGTH = 512
"""Tokens of a sample where nothing is said."""


def text_recipe(model: nn.Module) -> Recipe:
    """Returns the defaults of a training on a language model."""
    numbers = sum(parameter.numel() for parameter in model.parameters())
    return RECIPES["causal-lm", "small" if numbers < SMALL_BASE else "large"]


def language_scene(drawn: Blueprint, asked: Asked) -> Scene:
    """Returns what a training on texts plays.

    Args:
        drawn: the base. asked: the settings, all filled.

    Raises:
        DoesNotFit: samples that are longer than the base reads.
    """
    model: Any = drawn.language
    model.to(asked.type_of(drawn.dtype)).requires_grad_(False)
    recipe = text_recipe(model)
    shared: dict[str, Any] = dict(
        adapter=asked.config(recipe), name="forecast", plan=asked.loop(recipe), rates={"": recipe.learning_rate},
        settings={}, recorded={}, inputs={}, origin={},
    )  # fmt: skip
    virtual = shared["adapter"].tokens if isinstance(shared["adapter"], TokenConfig) else 0
    context = int(getattr(model.config, "max_position_embeddings", 0) or LENGTH + virtual)
    if (asked.length or 0) > context - virtual:
        raise DoesNotFit(f"length={asked.length}: {drawn.name} reads {context - virtual} tokens; give at most that")
    length = asked.length or min(LENGTH, context - virtual)
    if asked.task == "seq2seq":
        lesson: Lesson = Pairs(read=length, said=asked.answer, inner=model, **shared)
    else:
        base = LanguageBase(model, Blank(length), drawn.name)
        row = TokenRow(None, (1,) * length, (True,) * length)  # type: ignore[arg-type]
        causal = Causal(
            base=base, samples=[row], held_out=[], previews=[], answers=0, preview_tokens=1, say=print, **shared
        )
        causal.draws = Still(0)
        lesson = causal
    return Scene(lesson, whole=asked.whole, sizes={"length": length})


@dataclass(kw_only=True)
class Pairs(Lesson):
    """Texts that are made of others, as transformers' models for it compute their loss.

    Args:
        inner: the model. read: tokens of a question. said: of an answer.
    """

    inner: Any
    read: int
    said: int

    @property
    def model(self) -> Any:
        """The model."""
        return self.inner

    def loss(self, numbers: Sequence[int]) -> Loss:
        """Returns the loss of as many pairs."""
        ids = torch.zeros(len(numbers), self.read, dtype=torch.int64)
        labels = torch.zeros(len(numbers), self.said, dtype=torch.int64)
        mask = torch.ones_like(ids)
        return Loss(self.inner(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss)

    def preview(self) -> list[str]:
        """Nothing is shown."""
        return []

    def captions(self) -> list[str]:
        """Of nothing."""
        return []
