"""What is wrong with a data set of texts, before it costs a night of training."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from studio.datasets.findings import Problem, Severity, count
from studio.datasets.histogram import histogram
from studio.datasets.records import Records, read_records
from studio.datasets.samples import Form, Sample
from studio.errors import BadFile
from studio.shown import short, shown

__all__ = ["Measured", "TextReport", "check_texts"]

FEW: Final = 8  # samples; with fewer, nothing general is learned
CUT: Final = 0.01  # share of samples that may lose their end without a warning

S = TypeVar("S", bound=Sample)


@dataclass(frozen=True)
class Measured:
    """A sample as a base reads it.

    Args:
        size: its tokens. counted: those that are learned. lost: those that are cut off.
        ends: whether the last that is learned is a mark that ends an answer.
    """

    size: int
    counted: int
    lost: int = 0
    ends: bool = True


@dataclass(frozen=True)
class TextReport:
    """The findings on one data set; ``str()`` of it is a readable report.

    Args:
        source: the data. samples: how many can be used.
        unit: what lengths are counted in, ``"tokens"`` or ``"characters"``. lengths: of each sample.
        classes: label -> its samples; empty where there are none.
        problems: the findings, errors first.
        example: a sample as it is trained; "" where no base is known.
    """

    source: str
    samples: int
    unit: str
    lengths: tuple[int, ...]
    classes: dict[str, int]
    problems: tuple[Problem, ...]
    example: str = ""

    @property
    def ok(self) -> bool:
        """Whether a training can start: nothing found is an error."""
        return not any(problem.severity == "error" for problem in self.problems)

    def as_dict(self) -> dict[str, object]:
        """The report as plain values, for JSON."""
        problems = [{"severity": p.severity, "message": p.message, "lines": list(p.files)} for p in self.problems]
        return {
            "source": self.source, "samples": self.samples, "unit": self.unit, "lengths": list(self.lengths),
            "classes": self.classes, "ok": self.ok, "problems": problems, "example": self.example,
        }  # fmt: skip

    def __str__(self) -> str:
        total = f", {sum(self.lengths):,} {self.unit}" if self.lengths else ""
        lines = [f"{shown(self.source)}: {count(self.samples, 'sample')}{total}"]
        if self.classes:
            lines.append("  labels   " + ", ".join(f"{shown(name)} {n}" for name, n in self.classes.items()))
        if self.example:
            lines.append(f"  reads    {shown(self.example)}")
        lines += [f"  {line}" for line in histogram(self.lengths, self.unit)]
        for severity in ("error", "warning", "note"):
            lines += [f"  {severity:7}  {problem}" for problem in self.problems if problem.severity == severity]
        if not self.problems:
            lines.append("  nothing to mend")
        return "\n".join(lines)


def check_texts(
    source: Any, form: Form[S], *, held_out: Any = None, measure: Callable[[S], Measured] | None = None,
    example: Callable[[S], str] | None = None,
) -> TextReport:  # fmt: skip
    """Looks for everything in a data set that would spoil a training, and trains nothing.

    Args:
        source: the data (:mod:`studio.datasets.records`). form: that of the task.
        held_out: what will be measured on, to find what both hold; None: nothing.
        measure: a sample as the base reads it; None: no base is known, and lengths are in characters.
        example: writes a sample as it is trained.

    Raises:
        BadFile: the data cannot be read at all; a record that is of no form, or that the base cannot read, is among the
            findings.
    """
    records = read_records(source)
    samples, faults = _read(records, form)
    problems = [Problem("note", note) for note in records.notes] + faults + list(_few(samples)) + list(_same(samples))
    if held_out is not None:
        others, more = _read(read_records(held_out, "held-out data"), form)
        problems += [*more, *_leaks(samples, others)]
    measured = list[Measured]()
    if measure is not None:
        samples, measured, unread = _measured(samples, measure)
        problems += [*unread, *_lengths(samples, measured)]
    classes = Counter(sample.label for sample in samples if sample.label is not None)
    problems += _classes(classes)
    order: dict[Severity, int] = {"error": 0, "warning": 1, "note": 2}
    problems.sort(key=lambda problem: order[problem.severity])
    in_tokens = [one.size + one.lost for one in measured]
    return TextReport(
        source=records.source, samples=len(samples), unit="tokens" if measure else "characters",
        lengths=tuple(in_tokens or [len(json.dumps(sample.content, ensure_ascii=False)) for sample in samples]),
        classes=dict(classes.most_common()), problems=tuple(problems),
        example=example(samples[0]) if example and samples else "",
    )  # fmt: skip


def _read(records: Records, form: Form[S]) -> tuple[list[S], list[Problem]]:
    """The samples, and an error for each record that is none, and a note on fields that are not used."""
    samples, problems, unused = list[S](), list[Problem](), Counter[str]()
    for record in records.items:
        try:
            sample, known = form(record)
        except BadFile as problem:
            problems.append(Problem("error", str(problem).removeprefix(f"{record.where}: "), (f"line {record.line}",)))
            continue
        samples.append(sample)
        unused.update(name for name in record.fields if name not in known)
    problems += [
        Problem("note", f"the field {name!r} of {number} lines is not used") for name, number in unused.items()
    ]
    return samples, problems


def _measured(
    samples: Sequence[S], measure: Callable[[S], Measured]
) -> tuple[list[S], list[Measured], list[Problem]]:  # fmt: skip
    """The samples that a base can read, as it reads them, and an error for each other one."""
    kept, found, problems = list[S](), list[Measured](), list[Problem]()
    for sample in samples:
        try:
            found.append(measure(sample))
        except BadFile as problem:
            (line,) = _lines([sample])
            problems.append(Problem("error", str(problem).removeprefix(f"{line}: "), (line,)))
        else:
            kept.append(sample)
    return kept, found, problems


def _few(samples: Sequence[Sample]) -> Iterator[Problem]:
    if len(samples) < FEW:
        yield Problem("warning", f"only {count(len(samples), 'sample')}: what is learned will be these very texts")


def _same(samples: Sequence[Sample]) -> Iterator[Problem]:
    for group in _groups(samples, lambda sample: sample.digest):
        yield Problem("warning", f"the same sample {len(group)} times: it is learned so often", _lines(group))
    for group in _groups(samples, _given):
        if len({sample.digest for sample in group}) > 1:
            yield Problem("warning", f"the same is asked and answered in {len(group)} ways", _lines(group))


def _leaks(samples: Sequence[Sample], held_out: Sequence[Sample]) -> Iterator[Problem]:
    whole, asked = {sample.digest for sample in samples}, {_given(sample) for sample in samples}
    same = [sample for sample in held_out if sample.digest in whole]
    if same:
        yield Problem(
            "error", f"{len(same)} held-out samples are trained on too: what is measured flatters", _lines(same)
        )
    leaked = [sample for sample in held_out if sample.digest not in whole and (_given(sample) or 0) in asked]
    if leaked:
        yield Problem("warning", f"{len(leaked)} held-out samples ask what the data asks too", _lines(leaked))


def _lengths(samples: Sequence[Sample], measured: Sequence[Measured]) -> Iterator[Problem]:
    pairs = list(zip(samples, measured, strict=False))
    gone = [sample for sample, one in pairs if not one.counted]
    cut = [sample for sample, one in pairs if one.lost and one.counted]
    endless = [sample for sample, one in pairs if one.counted and not one.lost and not one.ends]
    if gone:
        all_of = len(gone) == len(samples)
        yield Problem(
            "error" if all_of else "warning", "the whole answer is cut off, so nothing is learned", _lines(gone)
        )
    if cut:
        share = len(cut) / len(samples)
        text = f"{share:.0%} of the samples are longer than max_length and lose their end"
        yield Problem("warning" if share > CUT else "note", text, _lines(cut))
    if endless:
        yield Problem("warning", "no end mark is learned, so answers will not stop by themselves", _lines(endless))


def _classes(classes: Counter[str]) -> Iterator[Problem]:
    if len(classes) == 1:
        yield Problem(
            "error", f"all samples have the label {short(next(iter(classes)))}: there is nothing to tell apart"
        )
    elif classes and max(classes.values()) > 20 * min(classes.values()):
        (most, n), (least, m) = classes.most_common(1)[0], classes.most_common()[-1]
        yield Problem("warning", f"{n} samples are {short(most)} and {m} are {short(least)}: look at macro F1")


def _given(sample: Sample) -> str | None:
    return None if sample.given is None else json.dumps(sample.given)


def _groups(samples: Sequence[S], key: Callable[[S], Hashable]) -> list[list[S]]:
    groups: dict[Hashable, list[S]] = defaultdict(list)
    for sample in samples:
        found = key(sample)
        if found is not None:
            groups[found].append(sample)
    return [group for group in groups.values() if len(group) > 1]


def _lines(samples: Sequence[Sample]) -> tuple[str, ...]:
    return tuple(f"line {sample.line}" for sample in samples)
