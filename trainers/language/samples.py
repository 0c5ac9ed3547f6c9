"""What a language model is trained and measured on: samples as token rows, and what was lost on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from studio.errors import BadConfig, BadFile
from studio.families.language import LanguageBase
from studio.trainers.language.texts import TokenRow, encode

if TYPE_CHECKING:
    from studio.datasets.chat import Sample, Samples

__all__ = ["encode_all", "split"]

NAMED: Final = 5  # samples that are named one by one in a message


def split(read: Samples, held_out: str | Path | float | None) -> tuple[list[Sample], list[Sample]]:
    """Returns what is trained on, and what is measured on.

    A share is kept by the samples' own hashes, so it does not depend on their order, and equal samples stay together.

    Args:
        read: the samples.
        held_out: a file with what is measured on, a share of the samples in (0, 1), or None.

    Raises:
        BadConfig: a share that leaves one side empty.
        BadFile: the file cannot be read as samples.
    """
    from studio.datasets.chat import read_samples

    if held_out is None:
        return list(read.items), []
    if not isinstance(held_out, float):
        return list(read.items), list(read_samples(held_out).items)
    limit = held_out * 16**16
    sides: tuple[list[Sample], list[Sample]] = ([], [])
    for sample in read.items:
        sides[int(sample.digest[:16], 16) < limit].append(sample)
    if not sides[0] or not sides[1]:
        raise BadConfig(
            f"held_out={held_out} of the {len(read.items)} samples of {read.file} leaves one side without a "
            "sample; give another share, or a file"
        )
    return sides


def encode_all(
    samples: Sequence[Sample],
    base: LanguageBase,
    length: int,
    *,
    where: str,
    note: Callable[[str], None],
    tell: Callable[[str], None],
) -> list[TokenRow]:
    """Encodes samples, and says what was cut off; a sample without any of its answer is left out by name.

    Args:
        samples: at least one.
        base: whose tokenizer counts.
        length: tokens of a sample at most.
        where: what they are called in messages.
        note: takes a line for the report.
        tell: takes a line for the report that the user sees at once.

    Raises:
        BadFile: none is left, or the chat template refuses one.
    """
    rows = [encode(sample, base, length) for sample in samples]
    whole = [row for row in rows if any(row.learned[1:])]
    if not whole:
        raise BadFile(f"no sample of {where} has a part of its answer within {length} tokens: raise max_length")
    learned = sum(sum(row.learned[1:]) for row in whole)
    note(f"{len(whole)} samples of {where}: {sum(len(row.tokens) for row in whole)} tokens, {learned} learned")
    gone = [str(row.sample.line) for row in rows if not any(row.learned[1:])]
    if gone:
        more = f" and {len(gone) - NAMED} more" if len(gone) > NAMED else ""
        lines = f"line{'s' if gone[1:] else ''} {', '.join(gone[:NAMED])}{more}"
        tell(f"left out of {where}: {lines}: the whole answer lies behind the first {length} tokens")
    cut = [row.lost for row in whole if row.lost]
    if cut:
        tell(
            f"{len(cut)} of {len(whole)} samples of {where} are longer than {length} tokens and lose their end: "
            f"{sum(cut)} tokens in all"
        )
    return whole
