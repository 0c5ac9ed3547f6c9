"""The one path for verdicts: texts in, labels out, by a classifier's head or by how likely a model says each label."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from studio.adapters.hosting.turns import turn
from studio.errors import BadConfig, DoesNotFit, StudioError
from studio.families.language import LanguageBase
from studio.families.language.judging import Reading, label_logits, read_texts, read_words
from studio.given import is_blank
from studio.pipelines.likelihood import answer_likelihoods
from studio.pipelines.write import evaluating
from studio.shown import short

__all__ = ["Verdict", "judge", "judge_by_words", "prompts_of", "texts_of"]


@dataclass(frozen=True)
class Verdict:
    """What a text was judged to be.

    Attributes:
        text: the text, without its tags; of a pair both, with a blank between them.
        label: the likeliest label; of a classifier of words those of all words, with blanks between them.
        scores: the probability of every label, or the reward that a reward model gives; none where words have labels.
        words: the verdict on every word, of a classifier of words.
    """

    text: str
    label: str
    scores: Mapping[str, float]
    words: tuple[Verdict, ...] = ()

    @property
    def line(self) -> str:
        """The verdict as people read it: ``"spam (0.98)"``, ``"in/O Accra/B-LOC"``."""
        if self.words:
            return " ".join(f"{word.text}/{word.label}" for word in self.words)
        return f"{self.label} ({self.scores[self.label]:.2f})"


def texts_of(
    base: LanguageBase, given: Sequence[str | Sequence[str]], forms: Collection[str]
) -> list[tuple[str, ...]]:  # fmt: skip
    """Returns the texts that every verdict is on: one, a pair, or the words of a text.

    Args:
        base: what judges. given: as the caller gave them. forms: what the adapters were trained on, as they say.

    Raises:
        BadConfig: no text, an empty one, or one text for what was trained on pairs.
    """
    found, words = [], base.kind.name == "token-classifier"
    for one in given:
        if isinstance(one, str):
            texts = tuple(one.split()) if words else (one,)
        else:
            texts = tuple(one) if isinstance(one, Sequence) else ()
        if not texts or not all(isinstance(text, str) and not is_blank(text) for text in texts):
            raise BadConfig(f"{short(one)} cannot be judged: give a text that is not empty, or a pair of such texts")
        if not words and len(texts) > 2:
            raise BadConfig(f"{short(one)} is {len(texts)} texts; one verdict is on one text or on a pair")
        if set(forms) in ({"pair"}, {"text"}) and len(texts) != 1 + ("pair" in forms):
            wanted, got = ("pairs of texts", "one text") if "pair" in forms else ("single texts", "a pair")
            raise BadConfig(f"{short(one)} is {got}, and the adapter was trained on {wanted}")
        found.append(texts)
    if not found:
        raise BadConfig("there is no text to judge: give at least one")
    return found


def prompts_of(
    base: LanguageBase, asked: Sequence[Sequence[str]], labels: Sequence[str] | None, template: str
) -> list[str]:  # fmt: skip
    """Returns what stands before the labels that a model could say; nothing for a classifier, which says none.

    Args:
        base: a model that writes texts, or a classifier. asked: single texts. labels: at least two. template: has
            ``{text}``.

    Raises:
        BadConfig: fewer than two labels, equal or empty ones, a pair of texts, or a template without ``{text}``; labels
            or a template for a classifier.
        DoesNotFit: it writes no texts.
    """
    if base.kind.head and labels is not None:
        raise BadConfig(f"{base.id} has a head for {', '.join(base.labels)}: give no labels")
    if base.kind.head and template != "{text}":
        raise BadConfig(f"{base.id} has a head, which reads texts as they are: leave out template={template!r}")
    if base.kind.head:
        return []
    if base.kind.name not in ("causal-lm", "seq2seq"):
        raise DoesNotFit(f"{base.id}, opened as {base.kind.name!r}, neither tells labels apart nor writes them")
    said = tuple(labels) if isinstance(labels, Sequence) and not isinstance(labels, str) else ()
    if len(set(said)) < max(len(said), 2) or not all(isinstance(one, str) and not is_blank(one) for one in said):
        raise BadConfig(
            f"labels={labels!r}: {base.id} has no head, so give at least two labels, all different, that it could say"
        )
    if not isinstance(template, str) or "{text}" not in template:
        raise BadConfig(f"template={template!r} has no {{text}}, where each text is put")
    if any(len(texts) > 1 for texts in asked):
        raise BadConfig("a label that is said follows one text: put both texts of a pair into one")
    return [template.replace("{text}", texts[0]) for texts in asked]


def judge(base: LanguageBase, asked: Sequence[Sequence[str]], batch_size: int) -> list[Verdict]:
    """Judges texts by a classifier's head, with the blend that is on.

    Args:
        base: a classifier of texts or of words; it is in evaluation mode meanwhile.
        asked: for every verdict a text, a pair of texts, or words.
        batch_size: how many are judged together.

    Raises:
        DoesNotFit: a text that is longer than the context. StudioError: the model gave no finite numbers.
    """
    words = base.kind.name == "token-classifier"
    readings = [_read(base, texts, words) for texts in asked]
    with turn(base.model), evaluating(base.model), torch.no_grad():
        found = [
            _chances(label_logits(base, readings[begin : begin + batch_size]))
            for begin in range(0, len(readings), batch_size)
        ]
    rows = (row for batch in found for row in batch.tolist())
    if not words:
        return [_verdict(" ".join(texts), next(rows), base.labels) for texts in asked]
    made = []
    for texts in asked:
        each = tuple(_verdict(word, next(rows), base.labels) for word in texts)
        made.append(Verdict(" ".join(texts), " ".join(word.label for word in each), {}, each))
    return made


def judge_by_words(
    base: LanguageBase, texts: Sequence[str], prompts: Sequence[str], labels: Sequence[str], *, chat: bool,
    batch_size: int,
) -> list[Verdict]:  # fmt: skip
    """Judges texts by how likely a model says each label after them, with the blend that is on.

    The score of a label is ``p(label, end | prompt)`` over the sum of those of all labels.

    Args:
        base: a causal or a sequence-to-sequence language model; it is in evaluation mode meanwhile.
        texts: what is judged. prompts: the same as the model reads it. labels: at least two.
        chat: whether the prompts have a template's marks. batch_size: answers that are computed together.

    Raises:
        DoesNotFit: a prompt that leaves no room in the context. StudioError: the model gave no finite numbers.
    """
    with turn(base.model), evaluating(base.model):
        found = _chances(answer_likelihoods(base, prompts, labels, chat=chat, batch_size=batch_size))
    return [_verdict(text, row, labels) for text, row in zip(texts, found.tolist(), strict=True)]


def _read(base: LanguageBase, texts: Sequence[str], words: bool) -> Reading:
    read = read_words(base, texts, base.context) if words else read_texts(base, texts, base.context)
    if read.lost:
        raise DoesNotFit(
            f"the text {short(' '.join(texts))} has {len(read.tokens) + read.lost} tokens and {base.id} reads "
            f"{base.context}; shorten it"
        )
    return read


def _chances(logits: Tensor) -> Tensor:
    """The softmax over the labels, ``(N, C)``; of a single label, a reward model's, its logit as it is."""
    if not bool(logits.isfinite().all()):
        raise StudioError(
            "the model gave numbers that are not finite; open the base with another dtype (bfloat16, float32), or "
            "lower the adapters' strengths"
        )
    return torch.softmax(logits.double(), -1) if logits.shape[-1] > 1 else logits.double()


def _verdict(text: str, chances: Sequence[float], labels: Sequence[str]) -> Verdict:
    scores = dict(zip(labels, chances, strict=True))
    return Verdict(text, max(scores, key=lambda label: scores[label]), scores)
