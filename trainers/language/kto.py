"""The lesson on single answers that are good or not: KTO, measured on held-out ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from studio.datasets import chat
from studio.datasets.preferences import Answer, Verdict
from studio.families.language import LanguageBase
from studio.trainers.language.answers import encode_answer, exchanged
from studio.trainers.language.preference import preferred
from studio.trainers.language.preference_losses import kto
from studio.trainers.language.reference import ReferenceLesson
from studio.trainers.language.rehearsal import Stand
from studio.trainers.language.texts import TokenRow
from studio.trainers.loop.mode import evaluating
from studio.trainers.loop.task import Loss, Say

__all__ = ["KTOLesson", "VerdictRow", "encode_verdict", "others_of", "rehearsed_verdicts"]


@dataclass(frozen=True)
class VerdictRow:
    """A verdict as token numbers.

    Args:
        sample: what it is of. answer: the answer behind its prompt.
    """

    sample: Verdict
    answer: TokenRow

    @property
    def size(self) -> int:
        """Its tokens."""
        return self.answer.size

    @property
    def counted(self) -> int:
        """Tokens of the answer."""
        return self.answer.counted

    @property
    def lost(self) -> int:
        """How many tokens were cut off."""
        return self.answer.lost

    def ends(self, base: LanguageBase) -> bool:
        """Whether the answer ends."""
        return self.answer.ends(base)


def encode_verdict(sample: Verdict, base: LanguageBase, length: int) -> VerdictRow:
    """Turns a verdict into token numbers, at most ``length``.

    Raises:
        BadFile: as :func:`studio.trainers.language.texts.render`.
    """
    return VerdictRow(sample, encode_answer(sample.answer, base, length))


def others_of(rows: Sequence[VerdictRow], length: int) -> list[TokenRow]:
    """Returns, for every row, its prompt with the answer of the next row that has another prompt.

    Where all prompts are equal, it is that of the next row. A pure function of the data.

    Args:
        rows: the rows. length: tokens at most.
    """
    found, count = [], len(rows)
    for place, row in enumerate(rows):
        behind = [rows[(place + step) % count] for step in range(1, count)] or [row]
        prompt = row.sample.answer.prompt
        other = next((one for one in behind if one.sample.answer.prompt != prompt), behind[0])
        found.append(exchanged(row.answer, other.answer, length))
    return found


@dataclass(kw_only=True)
class KTOLesson(ReferenceLesson[VerdictRow]):
    r"""An opened task on answers with labels.

    The loss of B answers is the mean of :func:`~studio.trainers.language.preference_losses.kto`. Its z, an estimate of
    KL(π‖ρ), is computed once per optimizer step from all samples of that step, whatever pass or process they belong
    to: ``z = max(0, mean h(x, y′))`` with a foreign answer y′ behind each prompt x (:func:`others_of`), without a
    gradient and without dropout. So neither accumulation nor the number of processes changes it; every process
    computes all of it.

    Args:
        length: tokens of a sample at most. beta: β. desirable, undesirable: λ_D and λ_U.
    """

    length: int
    beta: float
    desirable: float
    undesirable: float

    def remember(self, say: Say) -> None:
        """Asks the reference for the answers, own and foreign, of the data and of what is held out."""
        say(f"asking the reference, the base without an adapter, about {2 * len(self.samples)} answers")
        self._others = others_of(self.samples, self.length)
        self._own_before = self.trained_sums([row.answer for row in self.samples])
        self._others_before = self.trained_sums(self._others)
        self._held_others = others_of(self.held_out, self.length)
        self._held_before = self._held_ratios()
        self._z: Tensor | None = None

    def after_step(self, step: int) -> None:
        """The weights have changed, and with them what the next answers are held against."""
        self._z = None

    def loss(self, numbers: Sequence[int]) -> Loss:
        """Returns the loss of the drawn samples ``numbers``."""
        items = self._items(numbers)
        z = self._reference_of(numbers[0])
        rows = [self.samples[item] for item in items]
        now = self.sums([row.answer for row in rows])
        ratio = now - self._own_before[items].to(now.device)
        found = kto(ratio, self._good(rows).to(now.device), z, self.beta, self.desirable, self.undesirable)
        return Loss(found.mean(), {"z": z})

    def measured(self) -> dict[str, float]:
        """Returns figures of the held-out answers.

        The loss, with z over all of them; how often, of a good answer and one that is none, the good one has the higher
        log ratio; by how much on average; and the mean KL divergence per token from the reference.
        """
        own, other = (now - then for now, then in zip(self._held_ratios(), self._held_before, strict=True))
        good = self._good(self.held_out)
        loss = kto(own, good, other.mean().clamp(min=0), self.beta, self.desirable, self.undesirable).mean()
        pairs = torch.cartesian_prod(own[good], own[~good])
        strayed = [self.strayed([row.answer for row in rows]) for rows in self.batches()]
        return {
            "held_out_loss": float(loss), "accuracy": float(preferred(*pairs.unbind(1)).mean()),
            "margin": float(own[good].mean() - own[~good].mean()),
            "kl": sum(one for one, _ in strayed) / sum(count for _, count in strayed),
        }  # fmt: skip

    def _items(self, numbers: Sequence[int]) -> list[int]:
        return [self.draws.item(n, len(self.samples)) for n in numbers]

    def _good(self, rows: Sequence[VerdictRow]) -> Tensor:
        return torch.tensor([row.sample.good for row in rows])

    def _reference_of(self, number: int) -> Tensor:
        """z of the step that a drawn sample belongs to, ``()``."""
        if self._z is None:
            assert self.plan.batch_size is not None, "the plan has been filled"
            count = self.plan.batch_size * self.plan.accumulation
            first = number // count * count
            items = self._items(range(first, first + count))
            with torch.no_grad(), evaluating([self.model]):
                now = torch.cat(
                    [
                        self.sums([self._others[item] for item in items[i : i + self.plan.batch_size]])
                        for i in range(0, count, self.plan.batch_size)
                    ]
                )
            self._z = (now - self._others_before[items].to(now.device)).mean().clamp(min=0)
        return self._z

    def _held_ratios(self) -> tuple[Tensor, Tensor]:
        """``log π`` of the held-out answers, own and foreign, on the CPU; batches are always the same."""
        found: tuple[list[Tensor], list[Tensor]] = ([torch.zeros(0)], [torch.zeros(0)])
        begin = 0
        for rows in self.batches():
            some = self._held_others[begin : begin + len(rows)]
            begin += len(rows)
            for kept, answers in zip(found, ([row.answer for row in rows], some), strict=True):
                kept.append(self.sums(answers).cpu())
        return torch.cat(found[0]), torch.cat(found[1])


def rehearsed_verdicts(stand: Stand) -> KTOLesson:
    """Returns the lesson on answers that say nothing, as many as the reference is asked about at once.

    Args:
        stand: what it is rehearsed with.
    """
    verdict = Verdict(1, Answer(chat.Sample(1)), good=True)
    rows = [VerdictRow(verdict, stand.row(less=number % 2)) for number in range(stand.together)]
    return KTOLesson(
        **stand.shared, samples=rows, held_out=[], previews=[], preview_tokens=1, length=stand.length, beta=0.1,
        desirable=1.0, undesirable=1.0,
    )  # fmt: skip
