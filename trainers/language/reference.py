"""Lessons that hold a model against itself without the adapter, its reference."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

import torch
from torch import Tensor, nn

from studio.adapters import blended
from studio.trainers.language.answers import answer_logits, log_chances, sums
from studio.trainers.language.causal import Question, said
from studio.trainers.language.lesson import TextLesson
from studio.trainers.language.rows import Row
from studio.trainers.language.texts import TokenRow
from studio.trainers.loop.mode import evaluating
from studio.trainers.loop.task import Say

__all__ = ["ReferenceLesson", "Still", "divergence"]

R = TypeVar("R", bound=Row)
RATES: Final = ("p", "dropout", "attention_dropout", "activation_dropout", "attn_dropout")


class Still:
    """A base whose own dropout is off, also while it is trained; an adapter that is attached later keeps its own.

    With it the model would differ from its reference by chance alone.

    Args:
        model: the bare base.
    """

    def __init__(self, model: nn.Module) -> None:
        self._before = [
            (module, name, vars(module)[name])
            for module in model.modules()
            for name in RATES
            if isinstance(vars(module).get(name), float)
        ]
        for module, name, _ in self._before:
            setattr(module, name, 0.0)

    def give_back(self) -> None:
        """Switches it on again."""
        for module, name, rate in self._before:
            setattr(module, name, rate)


def divergence(logits: Tensor, reference: Tensor) -> Tensor:
    r"""Returns ``Σ_v π(v) (log π(v) − log ρ(v))`` of each token, ``(N,)``: 0 where both are equal, else above.

    Args:
        logits: of the model ``(N, V)``. reference: of its reference ``(N, V)``.

    Example:
        >>> float(divergence(torch.zeros(1, 4), torch.zeros(1, 4)))
        0.0
    """
    chances, other = logits.log_softmax(-1), reference.log_softmax(-1)
    return (chances.exp() * (chances - other)).sum(-1)


@dataclass(kw_only=True)
class ReferenceLesson(TextLesson[R]):
    """An opened task whose loss looks at the model without the adapter.

    What the reference says of a fixed text is a pure function of the text, so it is computed once, before the adapter
    is attached.

    Args:
        previews: what previews ask.
        preview_tokens: tokens of a preview's answer at most.
    """

    previews: Sequence[Question]
    preview_tokens: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self._still: Still | None = None

    def prepare(self, say: Say) -> None:
        """Switches the base's own dropout off and asks the reference, while the base is bare."""
        super().prepare(say)
        self.keep_still()
        with torch.no_grad(), evaluating([self.model]):
            self.remember(say)

    @property
    def asks(self) -> bool:
        """Whether the reference is asked about the samples before the first step."""
        return True

    def keep_still(self) -> None:
        """Switches the base's own dropout off, until the lesson is closed."""
        self._still = Still(self.model)

    @abstractmethod
    def remember(self, say: Say) -> None:
        """Keeps what the reference says of the samples; the model is bare, in evaluation mode, without gradients."""

    def close(self) -> None:
        """Gives the base back as it was."""
        if self._still is not None:
            self._still.give_back()
            self._still = None
        super().close()

    def preview(self) -> list[str]:
        """Answers the preview questions with the adapter as it is now, through the one path for texts."""
        return said(self.base, [(asked.text, asked.chat) for asked in self.previews], self.preview_tokens)

    def captions(self) -> list[str]:
        """Returns one line for each text of :meth:`preview`."""
        return [asked.caption for asked in self.previews]

    def sums(self, rows: Sequence[TokenRow]) -> Tensor:
        """Returns ``log π(y|x)`` of answers, ``(B,)``."""
        return sums(*log_chances(self.model, rows, self.base.pad))

    def trained_sums(self, rows: Sequence[TokenRow]) -> Tensor:
        """Returns the same of any number of rows, computed as a step of the training does, in small batches."""
        device, bf16, some = self.model.device, self.plan.precision == "bf16", self.together
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            return torch.cat([self.sums(rows[i : i + some]) for i in range(0, len(rows), some)])

    @contextmanager
    def bare(self) -> Iterator[None]:
        """The model is its own reference while the context lasts."""
        with torch.no_grad(), evaluating([self.model]), blended(self.model, {}):
            yield

    def strayed(self, rows: Sequence[TokenRow]) -> tuple[float, int]:
        """Returns the sum of :func:`divergence` over the tokens of answers, and their number; without gradients."""
        own, _, _ = answer_logits(self.model, rows, self.base.pad)
        with self.bare():
            other, _, _ = answer_logits(self.model, rows, self.base.pad)
        return float(divergence(own, other).double().sum()), len(own)
