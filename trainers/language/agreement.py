"""How well labels that were said agree with the right ones: F1 over labels, and over entities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

__all__ = ["entities", "entity_f1", "is_of_entities", "macro_f1"]

BEGINS, GOES_ON = ("B", "S"), ("I", "E")


def macro_f1(right: Sequence[str], said: Sequence[str]) -> float:
    """Returns the mean, over the labels that are right or said somewhere, of ``F1 = 2 hits / (right + said)``.

    Args:
        right: the right labels. said: those that were said of the same.

    Example:
        >>> round(macro_f1(["a", "a", "b", "c"], ["a", "b", "b", "b"]), 3)  # F1 of a 2/3, of b 1/2, of c 0
        0.389
    """
    found = sorted({*right, *said})
    scores = []
    for label in found:
        hits = sum(one == other == label for one, other in zip(right, said, strict=True))
        scores.append(2 * hits / (right.count(label) + said.count(label)))
    return sum(scores) / len(scores)


def entity_f1(right: Sequence[Sequence[str]], said: Sequence[Sequence[str]]) -> float:
    """Returns ``2 hits / (right + said)`` over entities: a hit has the right words and the right sort.

    Args:
        right: the right tags of every text. said: those that were said.

    Returns:
        F1; 1 where there is no entity and none is said.

    Example:
        >>> entity_f1([["B-LOC", "I-LOC", "O", "B-PER"]], [["B-LOC", "O", "O", "B-PER"]])
        0.5
    """
    hits = wanted = made = 0
    for one, other in zip(right, said, strict=True):
        true, found = set(entities(one)), set(entities(other))
        hits, wanted, made = hits + len(true & found), wanted + len(true), made + len(found)
    return 2 * hits / (wanted + made) if wanted + made else 1.0


def entities(tags: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """Yields the entities of a text, ``(first word, word behind, sort)``.

    ``B-`` and ``S-`` begin one; so does ``I-`` or ``E-`` of another sort than that of the word before.

    Example:
        >>> list(entities(["B-PER", "I-PER", "I-LOC", "O", "B-LOC", "B-LOC"]))
        [(0, 2, 'PER'), (2, 3, 'LOC'), (4, 5, 'LOC'), (5, 6, 'LOC')]
    """
    begin, sort = 0, ""
    for place, tag in enumerate([*tags, "O"]):
        mark, _, name = tag.partition("-")
        name = name if mark in (*BEGINS, *GOES_ON) else ""
        if sort and (name != sort or mark in BEGINS):
            yield begin, place, sort
            sort = ""
        if name and not sort:
            begin, sort = place, name


def is_of_entities(labels: Sequence[str]) -> bool:
    """Whether labels are tags of entities: ``B-LOC``, ``I-LOC``, ``O``.

    Example:
        >>> is_of_entities(["B-LOC", "O"]), is_of_entities(["NOUN", "VERB"])
        (True, False)
    """
    marks = {label.partition("-")[0] for label in labels if "-" in label}
    return bool(marks & set(BEGINS)) and marks <= {*BEGINS, *GOES_ON}
