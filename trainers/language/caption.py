"""The lesson on vision-language models: what is to be said of pictures, measured on held-out ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from studio.adapters import AdapterConfig
from studio.datasets.seen import Seen
from studio.errors import DoesNotFit
from studio.families.language import LanguageBase
from studio.families.language.seeing import asked, beside_text, check_sees, joined, looked_at
from studio.trainers.language.lesson import MEASURED, TokenLesson, exact_match
from studio.trainers.language.rehearsal import Stand
from studio.trainers.language.rows import short
from studio.trainers.language.seq2seq import shortened
from studio.trainers.language.texts import IGNORED

__all__ = [
    "CaptionLesson",
    "SeenRow",
    "caption_loss",
    "encode_seen",
    "picture_tokens",
    "rehearsed_pictures",
    "text_alone",
]


@dataclass(frozen=True)
class SeenRow:
    """A picture with its question as the model reads it, and what is to be said as token numbers.

    Args:
        sample: what it is of.
        asked: what stands before the answer, as text.
        seen: the numbers of picture and question, computed once (:func:`studio.families.language.seeing.looked_at`).
        said: tokens of what is to be said, its end included; all of them are learned.
        lost: how many tokens were cut off.
    """

    sample: Seen
    asked: str
    seen: Mapping[str, Tensor] = field(repr=False, compare=False)
    said: tuple[int, ...]
    lost: int = 0

    @property
    def given(self) -> int:
        """Tokens of picture and question."""
        return int(self.seen["input_ids"].shape[1])

    @property
    def size(self) -> int:
        """Its tokens."""
        return self.given + len(self.said)

    @property
    def counted(self) -> int:
        """Its learned tokens."""
        return len(self.said)

    def ends(self, base: LanguageBase) -> bool:
        """Whether the last token ends an answer."""
        return bool(self.said) and self.said[-1] in base.ends


def encode_seen(sample: Seen, base: LanguageBase, prompt: str, length: int) -> SeenRow:
    """Turns a picture, its question and what is to be said into numbers, at most ``length`` tokens.

    What is too long loses tokens of the answer before its end.

    Args:
        sample: the sample. base: the base. prompt: what is asked where the sample asks nothing. length: tokens at most.

    Raises:
        DoesNotFit: as :func:`studio.families.language.seeing.asked`. BadFile: the picture cannot be read any more.
    """
    question = asked(base, sample.turns or (("user", prompt),))
    seen = looked_at(base, sample.picture(), question)
    text = base.tokenizer(sample.text, add_special_tokens=False, verbose=False)["input_ids"]
    said, room = [*text, base.ends[0]], max(length - int(seen["input_ids"].shape[1]), 0)
    return SeenRow(sample, question, seen, shortened(said, room) if room else (), max(len(said) - room, 0))


def caption_loss(base: LanguageBase, rows: Sequence[SeenRow]) -> tuple[Tensor, int]:
    """Returns the sum of the losses of what is to be said, and the number of its tokens.

    Args:
        base: the base. rows: B pictures.
    """
    inputs = joined(base, [row.seen for row in rows], [row.said for row in rows], left=False)
    length = inputs["input_ids"].shape[1]
    labels = torch.full((len(rows), length), IGNORED)
    for place, row in enumerate(rows):
        labels[place, row.given : row.size] = torch.tensor(row.said)
    labels = labels.to(base.model.device)[:, 1:]
    # virtual tokens in front have logits too; the last T are those of picture and text
    logits = base.model(**inputs, use_cache=False).logits[:, -length:-1]
    kept = labels != IGNORED
    return F.cross_entropy(logits[kept].float(), labels[kept], reduction="sum"), int(kept.sum())


@dataclass(kw_only=True)
class CaptionLesson(TokenLesson[SeenRow]):
    r"""An opened task on a vision-language model.

    Args:
        previews: what previews look at.
    """

    previews: Sequence[SeenRow]

    def summed(self, rows: Sequence[SeenRow]) -> tuple[Tensor, int]:
        return caption_loss(self.base, rows)

    def judged(self) -> dict[str, float]:
        """Returns which share of the held-out answers is said to the letter."""
        if not self.asked:
            return {}
        made = self._said(self.asked, 4 + max(row.counted for row in self.asked))
        return exact_match(made, [row.sample.text for row in self.asked])

    def preview(self) -> list[str]:
        """Says what previews show with the adapter as it is now, through the one path for pictures."""
        return self._said(self.previews, self.preview_tokens)

    def captions(self) -> list[str]:
        """Returns one line for each text of :meth:`preview`."""
        return [short(f"{row.sample.name} (wanted: {row.sample.text})") for row in self.previews]

    def _said(self, rows: Sequence[SeenRow], most: int) -> list[str]:
        from studio.pipelines.seeing import describe_seen

        return [one.text for one in describe_seen(self.base, [row.seen for row in rows], most, MEASURED)]


def text_alone(adapter: AdapterConfig, base: LanguageBase) -> AdapterConfig:
    """Returns the adapter's config with all that is no part of the text decoder left out.

    Args:
        adapter: the config. base: a vision-language model.
    """
    return replace(adapter, exclude=(*adapter.exclude, *beside_text(base)))


PICTURE: Final = (512, 512)
"""Pixels of a picture that is rehearsed with, which matter where a base does not scale all to one size."""


def rehearsed_pictures(stand: Stand) -> CaptionLesson:
    """Returns the lesson on black pictures of which nothing is asked.

    Args:
        stand: what it is rehearsed with; ``vision`` is as of the task.

    Raises:
        DoesNotFit: the base sees nothing, or nothing can be said behind a picture.
    """
    seen = _blank(stand.base)
    room = stand.length - int(seen["input_ids"].shape[1])
    if room < 1:
        raise DoesNotFit(
            f"length={stand.length}: {stand.base.id} reads a picture as {stand.length - room} tokens, and what is "
            "said of it stands behind them; give more"
        )
    adapter = stand.shared["adapter"]
    shared = {**stand.shared, "adapter": adapter if stand.own["vision"] else text_alone(adapter, stand.base)}
    rows = [SeenRow(Seen(1), "", seen, (1,) * max(room - less, 1)) for less in (0, 1)]
    return CaptionLesson(**shared, samples=rows, held_out=[], previews=[], answers=0, preview_tokens=1)


def picture_tokens(base: LanguageBase, own: Mapping[str, Any]) -> int:
    """Returns the least tokens of a sample: those of a picture that is rehearsed with, and one of an answer.

    Args:
        base: a vision-language model. own: the task's settings.
    """
    return int(_blank(base)["input_ids"].shape[1]) + 1


def _blank(base: LanguageBase) -> Mapping[str, Tensor]:
    """What the model reads of a black picture."""
    check_sees(base)
    return looked_at(base, Image.new("RGB", PICTURE), asked(base, (("user", ""),)))
