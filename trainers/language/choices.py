"""Classification as text: the answers are the labels, and the likeliest of them is what the model says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from studio.errors import BadFile
from studio.families.language import LanguageBase
from studio.shown import short
from studio.trainers.language.agreement import macro_f1

__all__ = ["choices_of", "chosen"]

MOST: Final = 64  # answers that are held against each other


def choices_of(answers: Iterable[str], where: str) -> tuple[str, ...]:
    """Returns the different answers of what is trained on, in order.

    Args:
        answers: of every sample. where: what the data is called.

    Raises:
        BadFile: there is one alone, or more than 64.
    """
    found = tuple(sorted(set(answers)))
    if not 2 <= len(found) <= MOST:
        raise BadFile(
            f"choices=True: the answers of {where} are the labels, and there are {len(found)} different ones "
            f"({short(found[0])}, ...); it takes 2 to {MOST}"
        )
    return found


def chosen(
    base: LanguageBase, asked: Sequence[tuple[str, bool]], right: Sequence[str], choices: Sequence[str], together: int
) -> dict[str, float]:  # fmt: skip
    """Returns how often the likeliest of the choices is the right answer, and F1, the mean over the choices.

    Args:
        base: the model. asked: what stands before each answer, and whether a chat template wrote it.
        right: the right answers. choices: all answers. together: answers that are computed at once.
    """
    from studio.pipelines.likelihood import answer_likelihoods

    said = [""] * len(asked)
    for chat in (True, False):
        places = [place for place, (_, form) in enumerate(asked) if form is chat]
        if places:
            texts = [asked[place][0] for place in places]
            best = answer_likelihoods(base, texts, choices, chat=chat, batch_size=together).argmax(-1).tolist()
            for place, number in zip(places, best, strict=True):
                said[place] = choices[number]
    hits = sum(one == other for one, other in zip(right, said, strict=True))
    return {"accuracy": hits / len(right), "macro_f1": macro_f1(right, said)}
