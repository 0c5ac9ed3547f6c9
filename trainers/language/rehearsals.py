"""The tasks of which forecasts are made, by name; of a task that is not among them, a forecast is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from studio.errors import BadConfig
from studio.registry import Registry
from studio.trainers.language.caption import picture_tokens, rehearsed_pictures
from studio.trainers.language.causal import rehearsed_texts
from studio.trainers.language.embed import rehearsed_sentences, sentence_sizes
from studio.trainers.language.grpo import prompt_sizes, prompt_tokens, rehearsed_prompts
from studio.trainers.language.kto import VerdictRow, rehearsed_verdicts
from studio.trainers.language.labels import rehearsed_labels
from studio.trainers.language.preference import PAIR_LOSSES, ComparisonRow, rehearsed_comparisons
from studio.trainers.language.reference import ReferenceLesson
from studio.trainers.language.rehearsal import Rehearsal, Stand
from studio.trainers.language.reward import rehearsed_rewards, reward_sizes
from studio.trainers.language.seq2seq import pair_sizes, rehearsed_pairs
from studio.trainers.language.speech import rehearsed_sounds

__all__ = ["REHEARSALS", "USUAL_TASKS"]

REHEARSALS: Final[Registry[Rehearsal]] = Registry("task whose trainings are forecast")
"""Name of the task -> what is played of it."""

USUAL_TASKS: Final = {
    "causal-lm": "causal-lm", "seq2seq": "seq2seq", "classifier": "classify", "token-classifier": "classify",
    "encoder": "embed", "speech": "speech", "vision": "caption",
}  # fmt: skip
"""What a base was saved as (a kind) -> the task that is meant where none is named."""


def _preferred(stand: Stand) -> ReferenceLesson[Any]:
    loss = stand.own["loss"]
    if loss not in (*PAIR_LOSSES, "kto"):
        raise BadConfig(f"loss={loss!r}: give one of {', '.join((*PAIR_LOSSES, 'kto'))}")
    return rehearsed_verdicts(stand) if loss == "kto" else rehearsed_comparisons(stand)


def _answer_sizes(rows: Sequence[ComparisonRow | VerdictRow], own: Mapping[str, Any]) -> dict[str, int]:
    texts = [[row.answer] if isinstance(row, VerdictRow) else [row.chosen, row.rejected] for row in rows]
    return {"length": max(one.size for some in texts for one in some)}


for _name, _rehearsal in {
    "causal-lm": Rehearsal(kind="causal-lm", lesson=rehearsed_texts),
    "code": Rehearsal(kind="causal-lm", lesson=rehearsed_texts),
    "seq2seq": Rehearsal(kind="seq2seq", lesson=rehearsed_pairs, sizes=pair_sizes),
    "classify": Rehearsal(
        kind="classifier", lesson=rehearsed_labels, options={"keep_head": False}, labels=2,
        taken=("a text has one of two labels",),
    ),
    "embed": Rehearsal(
        kind="encoder", lesson=rehearsed_sentences, sizes=sentence_sizes, options={"pooling": "mean", "group": 16},
        taken=("no pair has a third text that is far",),
    ),
    "preference": Rehearsal(
        kind="causal-lm", lesson=_preferred, sizes=_answer_sizes, options={"loss": "dpo"},
        taken=("every token of an answer is learned, so that prompts are short",),
    ),
    "reward": Rehearsal(kind="classifier", lesson=rehearsed_rewards, sizes=reward_sizes, labels=1),
    "grpo": Rehearsal(
        kind="causal-lm", lesson=rehearsed_prompts, sizes=prompt_sizes, options={"group": 8, "max_new_tokens": 32},
        least=prompt_tokens, taken=("rewards take nothing, and answers are as long as they may be",),
    ),
    "speech": Rehearsal(kind="speech", lesson=rehearsed_sounds, length=128),
    "caption": Rehearsal(
        kind="vision", lesson=rehearsed_pictures, options={"vision": False}, length=1024, least=picture_tokens,
        taken=("pictures have 512 x 512 pixels, where the base does not scale all to one size",),
    ),
}.items():  # fmt: skip
    REHEARSALS.add(_name, _rehearsal)
