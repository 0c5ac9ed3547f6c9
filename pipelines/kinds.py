"""What a language base has to be opened as for an adapter: a file says it, and a pipeline checks it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from studio.errors import DoesNotFit
from studio.families.language import KINDS, LanguageBase
from studio.given import parse_json

__all__ = ["check_kind", "check_writes", "stated_kind", "stated_labels"]


def stated_kind(facts: Mapping[str, str]) -> dict[str, Any]:
    """Returns what an adapter's file says that its base is opened as, as arguments of ``open``.

    Args:
        facts: what the file states.

    Returns:
        ``kind`` and, of what has a head, ``labels``; nothing where the file says nothing that is known.

    Example:
        >>> stated_kind({"kind": "classifier", "labels": '["ham", "spam"]'})
        {'kind': 'classifier', 'labels': ('ham', 'spam')}
    """
    kind = facts.get("kind", "")
    if kind not in KINDS:
        return {}
    labels = stated_labels(facts) if KINDS[kind].head else ()
    return {"kind": kind} | ({"labels": labels} if labels else {})


def stated_labels(facts: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the labels that an adapter's file says it was trained to tell apart; none where it says no list.

    Example:
        >>> stated_labels({"labels": '["ham", "spam"]'}), stated_labels({"labels": "ham"})
        (('ham', 'spam'), ())
    """
    try:
        labels = parse_json(facts.get("labels", "null"))
    except ValueError:
        return ()
    return tuple(map(str, labels)) if isinstance(labels, list) else ()


def check_kind(base: LanguageBase, file: Path, facts: Mapping[str, str]) -> None:
    """Checks that a base was opened as what a classifier's or an encoder's adapter was trained on; other files fit any.

    Args:
        base: the base. file: the adapter's. facts: what it states.

    Raises:
        DoesNotFit: it was opened as something else, or to tell other labels apart.
    """
    stated = stated_kind(facts)
    kind, labels = stated.get("kind"), stated.get("labels")
    if kind is None or not (KINDS[kind].head or kind == "encoder"):
        return
    if base.kind.name != kind:
        apart = f", labels={labels!r}" if labels else ""
        raise DoesNotFit(
            f"{file} is for {KINDS[kind].one}, and {base.id} was opened as {base.kind.one}: open it with "
            f"kind={kind!r}{apart}"
        )
    if labels is not None and labels != base.labels:
        raise DoesNotFit(
            f"{file} tells {', '.join(labels)} apart, and {base.id} was opened to tell {', '.join(base.labels)}: open "
            f"it with labels={labels!r}"
        )


def check_writes(base: LanguageBase) -> None:
    """Checks that a base writes texts.

    Raises:
        DoesNotFit: it has labels or numbers to give, and no words.
    """
    if base.kind.head:
        raise DoesNotFit(f"{base.id} was opened as a {base.kind.title}, which writes nothing: ask it for verdicts")
    if base.kind.processor:
        ask = {"speech": "sounds (transcribe)", "vision": "pictures (caption)"}[base.kind.name]
        raise DoesNotFit(f"{base.id} is {base.kind.one}: ask it with {ask}")
    if base.kind.name == "encoder":
        raise DoesNotFit(f"{base.id} is an encoder of texts, which writes nothing")
