"""What a language model is trained and measured on: samples as rows of numbers, and what was lost on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, TypeVar

from studio.datasets.samples import Form, Sample, Samples, read_samples
from studio.errors import BadConfig, BadFile
from studio.families.language import LanguageBase

__all__ = ["Row", "encode_all", "short", "split"]

NAMED: Final = 5  # samples that are named one by one in a message

S = TypeVar("S", bound=Sample)


class Row(Protocol):
    """A sample as numbers; every task has its own sort of row."""

    @property
    def sample(self) -> Sample:
        """What it is of."""

    @property
    def size(self) -> int:
        """Its tokens."""

    @property
    def counted(self) -> int:
        """What of it counts in the loss, in tokens or labels; 0 where there is nothing to learn from it."""

    @property
    def lost(self) -> int:
        """How many tokens were cut off."""

    def ends(self, base: LanguageBase) -> bool:
        """Whether the last that is learned is a mark that ends an answer; True where nothing is written."""


R = TypeVar("R", bound=Row)


def split(read: Samples[S], held_out: Any, form: Form[S]) -> tuple[list[S], list[S]]:
    """Returns what is trained on, and what is measured on.

    A share is kept by the samples' own hashes, so it does not depend on their order, and equal samples stay together.

    Args:
        read: the samples.
        held_out: a source of what is measured on, a share of the samples in (0, 1), or None.
        form: what makes samples of that file.

    Raises:
        BadConfig: a share that leaves one side empty.
        BadFile: the file cannot be read as samples.
    """
    if held_out is None:
        return list(read.items), []
    if not isinstance(held_out, float):
        return list(read.items), list(read_samples(held_out, form, "held-out data").items)
    limit = held_out * 16**16
    sides: tuple[list[S], list[S]] = ([], [])
    for sample in read.items:
        sides[int(sample.digest[:16], 16) < limit].append(sample)
    if not sides[0] or not sides[1]:
        raise BadConfig(
            f"held_out={held_out} of the {len(read.items)} samples of {read.file} leaves one side without a "
            "sample; give another share, or a file"
        )
    return sides


def encode_all(
    samples: Sequence[S],
    *,
    encode: Callable[[S], R],
    length: int,
    where: str,
    note: Callable[[str], None],
    tell: Callable[[str], None],
) -> list[R]:
    """Turns samples into rows and says what was cut off; a sample without any of its answer is left out by name.

    Args:
        samples: at least one.
        encode: makes the row of a sample.
        length: tokens of a sample at most.
        where: what they are called in messages.
        note: takes a line for the report.
        tell: takes a line for the report that the user sees at once.

    Raises:
        BadFile: none is left, or ``encode`` refuses one.
    """
    rows = [encode(sample) for sample in samples]
    whole = [row for row in rows if row.counted]
    if not whole:
        raise BadFile(f"no sample of {where} has a part of its answer within {length} tokens: raise max_length")
    learned = sum(row.counted for row in whole)
    note(f"{len(whole)} samples of {where}: {sum(row.size for row in whole)} tokens, {learned} learned")
    gone = [str(row.sample.line) for row in rows if not row.counted]
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


def short(text: str, most: int = 120) -> str:
    """Returns a text in one line, at most that long.

    Example:
        >>> short("a  long\\nline", 8)
        'a lon...'
    """
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 3]}..."
