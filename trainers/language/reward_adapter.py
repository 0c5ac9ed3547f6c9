"""A reward adapter that judges the answers of another adapter on the same base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from studio.datasets import chat
from studio.datasets.preferences import Answer
from studio.datasets.prompts import Prompt
from studio.errors import DoesNotFit
from studio.families.language import LanguageBase, open_language_base
from studio.families.language.judging import label_logits, read_texts
from studio.files import inspect, load
from studio.trainers.language.reward import rewarded_texts
from studio.trainers.language.rewards import each

__all__ = ["RewardAdapter"]


class RewardAdapter:
    """A model with a reward adapter, on weights of its own beside the model that is trained.

    Args:
        file: the adapter's file. base: what the task was given as its base. like: the same base as it was opened.
        quantize: as of the task.

    Raises:
        DoesNotFit: it is no reward adapter, one of another base, or the base is an object.
    """

    def __init__(self, file: Path, base: Any, like: LanguageBase, quantize: str | None) -> None:
        self.facts = inspect(file).facts
        if self.facts.get("task") != "reward":
            raise DoesNotFit(
                f"{file} is no reward adapter (its task is {self.facts.get('task', 'not told')}): train one with "
                "studio tune reward"
            )
        if not isinstance(base, (str, Path)):
            raise DoesNotFit(f"a reward adapter is opened on a base of its own, and {like.id} is an object: name it")
        self.base = open_language_base(
            base, kind="classifier", labels=("reward",), device=like.model.device, quantize=quantize
        )
        if self.facts.get("base_hash") != self.base.hash:
            raise DoesNotFit(f"{file} was trained on {self.facts.get('base', 'another base')}, not on this {like.id}")
        load(self.base.model, file)
        self.base.model.eval().requires_grad_(False)
        self.length = int(self.facts["max_length"])

    def __call__(self, prompt: Prompt, texts: Sequence[str]) -> list[float]:
        """Returns the rewards of texts that were written behind a prompt.

        Args:
            prompt: the prompt. texts: at least one.

        Raises:
            BadConfig: a reward is not finite.
        """
        readings = [read_texts(self.base, rewarded_texts(_answer(prompt, text)), self.length) for text in texts]
        with torch.no_grad():
            found = label_logits(self.base, readings)[:, 0].tolist()
        judged = iter(found)
        return list(each("of the adapter", lambda *_: next(judged))(prompt, texts))


def _answer(prompt: Prompt, text: str) -> Answer:
    if not prompt.turns:
        return Answer(chat.Sample(prompt.line, prompt=prompt.text, completion=text))
    return Answer(chat.Sample(prompt.line, (*prompt.turns, ("assistant", text))), len(prompt.turns))
