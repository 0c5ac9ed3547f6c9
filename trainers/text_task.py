"""What the tasks on language bases share: their settings, how data is read, and how they are opened.

A new task is one file with a frozen dataclass over :class:`TextTask`. It says which kind of base it trains, which form
its samples have (:mod:`studio.datasets.samples`), how a sample becomes a row of numbers, and which lesson the loop
runs on the rows; data, recipe, lengths, held-out samples, reports and names are here.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, TypedDict, TypeVar

from studio.adapters import AdapterConfig
from studio.adapters.tokens.contract import TokenConfig
from studio.config import check
from studio.datasets.records import source_name
from studio.datasets.samples import Form, Sample, Samples, read_samples, samples_digest
from studio.datasets.text_check import Measured, TextReport, check_texts
from studio.errors import BadConfig, BadFile, DoesNotFit
from studio.families.language import LANGUAGE_BASES, LanguageBase, open_language_base
from studio.trainers.language.rehearsals import REHEARSALS
from studio.trainers.language.rows import Row, encode_all, split
from studio.trainers.loop.plan import Plan
from studio.trainers.loop.task import AdapterLike, Lesson, Say
from studio.trainers.opening import Opening, open_with_recipe

__all__ = ["LONGEST", "Read", "Shared", "TextTask"]

LONGEST: Final = 1024
"""Tokens of a sample where nothing is said; contexts of 128k would fill any memory."""

S = TypeVar("S", bound=Sample)
R = TypeVar("R", bound=Row)


@dataclass(frozen=True)
class Read(Generic[S]):
    """What a task has read.

    Args:
        found: all samples. trained: those that are trained on. kept: those that are only measured on.
    """

    found: Samples[S]
    trained: list[S]
    kept: list[S]


class Shared(TypedDict):
    """The fields that every lesson on a language base takes."""

    base: LanguageBase
    adapter: AdapterConfig
    plan: Plan
    rates: Mapping[str, float]
    name: str
    settings: Mapping[str, Any]
    recorded: Mapping[str, Any]
    inputs: Mapping[str, str]
    start: Path | None
    call: Sequence[str]
    origin: Mapping[str, str]
    say: Say
    notes: list[str]
    head: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class TextTask(ABC, Generic[S, R]):
    """Settings that every task on a language base has. Two facts suffice: ``base`` and ``data``.

    Attributes:
        base: the name of an embedded base (``"facts"``), a transformers folder, a hub id, or a pair of a model and its
            tokenizer.
        data: the samples: a file or a folder of one of the forms of :mod:`studio.datasets.records`, a data set of
            Hugging Face's ``datasets``, or a list of dicts.
        held_out: another one that is only measured on; or which share of ``data``, in (0, 1), is kept for that (always
            the same samples, equal ones on the same side). None: nothing is measured.
        max_length: tokens of a sample at most; longer ones lose their end, which is told. None: the base's context, and
            at most 1024.
        name: the adapter's name; None: that of the data.
        licence: what the adapter file says about its licence.
        quantize: what of the base is kept in fewer bits, and how: ``"nf4"``; None: nothing.

    Raises:
        BadConfig: a field with an impossible value.
    """

    task_name: ClassVar[str]
    kind: ClassVar[str]
    """What its base is opened as: a name of :data:`studio.families.language.KINDS`."""
    least: ClassVar[Mapping[str, int]] = {}
    """The least value of the task's own whole numbers."""

    base: Any
    data: Any
    held_out: Any = None
    max_length: int | None = None
    name: str | None = None
    licence: str | None = None
    quantize: str | None = None

    def __post_init__(self) -> None:
        check(self)
        if isinstance(self.held_out, float) and not 0 < self.held_out < 1:
            raise BadConfig(f"held_out={self.held_out!r}: a share lies between 0 and 1; or name a file")
        for name, least in {"max_length": 2, **self.least}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise BadConfig(f"{name}={value!r}: {name} must be at least {least}")
        if self.name is not None and not re.fullmatch(r"[\w-]+", self.name):
            raise BadConfig(f"name={self.name!r}: use letters, digits, '_' and '-'")

    # -- what a task says ------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def form(self) -> Form[S]:
        """What makes a sample of a record."""

    @abstractmethod
    def encode(self, sample: S, base: LanguageBase, length: int) -> R:
        """Turns a sample into numbers.

        Args:
            sample: the sample. base: whose tokenizer counts. length: tokens at most.
        """

    @abstractmethod
    def lesson(self, shared: Shared, rows: Sequence[R], held_out: Sequence[R]) -> Lesson:
        """Returns the lesson on rows.

        Args:
            shared: what every lesson takes. rows: what is trained on. held_out: what is measured on.
        """

    @abstractmethod
    def example(self, row: R, base: LanguageBase) -> str:
        """Returns a sample as the model reads it, with ``⟦`` and ``⟧`` around what is learned."""

    @abstractmethod
    def call(self, sample: S) -> Sequence[str]:
        """Returns the words of the command line that use the adapter: ``("complete", "BASE", "a question")``.

        Args:
            sample: what it is tried on. The word ``"BASE"`` stands for the base.
        """

    def kind_for(self, read: Read[S]) -> str:
        """Returns the kind that the base is opened as, where that depends on the data."""
        return self.kind

    def labels(self, read: Read[S]) -> Sequence[str] | None:
        """Returns what a classifier shall tell apart, None for a base of another kind."""
        return None

    def head(self, base: LanguageBase) -> Sequence[str]:
        """Returns the paths of the layers that are trained themselves beside the adapter."""
        return ()

    def settings(self, rows: Sequence[R], base: LanguageBase) -> Mapping[str, Any]:
        """Returns the task's own settings as decided, for ``run.toml``."""
        return {}

    def origin(self, rows: Sequence[R], base: LanguageBase) -> Mapping[str, str]:
        """Returns what the adapter's file says about how it is to be asked."""
        return {}

    def narrowed(self, adapter: AdapterConfig, base: LanguageBase) -> AdapterConfig:
        """Returns the adapter's config with what the task never adapts left out; one that is trained on from stays."""
        return adapter

    def unforeseen(self) -> str:
        """Returns what its settings ask for of which no forecast is made, "" where there is nothing."""
        return ""

    def remarks(self, rows: Sequence[R], base: LanguageBase) -> Iterable[str]:
        """Returns what the user is told of the rows, in sentences, once for all of them."""
        return ()

    # -- what all of them do ---------------------------------------------------------------------------------------

    def open(self, adapter: AdapterLike, plan: Plan, say: Say) -> Lesson:
        """See :meth:`studio.trainers.Task.open`.

        Raises:
            UsageError: whatever is wrong about the request.
        """
        if plan.fit is not None:
            from studio.trainers.forecast.before import check_before

            if self.unforeseen():
                raise DoesNotFit(
                    f"no forecast is made of {self.unforeseen()}, so fit={plan.fit!r} cannot be kept: leave it out"
                )
            check_before(self, adapter, plan, say)
        read = self.look()
        opener = partial(open_language_base, kind=self.kind_for(read), labels=self.labels(read))
        opening = open_with_recipe(
            self.task_name, self.base, opener, LANGUAGE_BASES, adapter=adapter, plan=plan, say=say,
            quantize=self.quantize,
        )  # fmt: skip
        rows, held_out, length = self._rows(read, opening)
        if opening.start is None:
            opening = replace(opening, adapter=self.narrowed(opening.adapter, opening.base))
        lesson = self.lesson(self._shared(read, opening, rows, length, say), rows, held_out)
        if self.task_name in REHEARSALS and not self.unforeseen():
            rehearsal = REHEARSALS[self.task_name]
            own = {name: getattr(self, name) for name in rehearsal.options}
            lesson.foresee = opening.foreseen(self, rehearsal.sizes(rows, own))
        return lesson

    def _shared(
        self, read: Read[S], opening: Opening[LanguageBase], rows: Sequence[R], length: int, say: Say
    ) -> Shared:  # fmt: skip
        """What every lesson takes."""
        base, head = opening.base, self.head(opening.base)
        if head and isinstance(opening.adapter, TokenConfig):
            raise DoesNotFit(
                f"{opening.adapter.method} trains virtual tokens and no layer, and this task trains the head "
                f"({', '.join(head)}) too: take a method that changes layers"
            )
        digests = {"data": samples_digest(read.trained)} | (
            {"held_out": samples_digest(read.kept)} if read.kept else {}
        )
        own = {} if self.quantize is None else {"quantize": self.quantize}
        return Shared(
            base=base, adapter=opening.adapter, plan=opening.plan, rates={"": opening.rate}, name=self._named(),
            settings={"task": self.task_name, "max_length": length, "samples": len(rows), **self.settings(rows, base),
                      **own},
            recorded={"base": opening.base_name, "data": _path(self.data), "held_out": _path(self.held_out),
                      "name": self._named()},
            inputs={"base": base.id, "base_hash": base.hash, "tokenizer": base.tokenizer_hash,
                    "template": base.template_hash, **digests, **opening.inputs},
            start=opening.start, call=self._call(opening, read.found.items[0]),
            origin=self._origin(opening, digests["data"], rows, length), say=say, notes=opening.notes, head=head,
        )  # fmt: skip

    def look(self) -> Read[S]:
        """Reads the data: what is there, and of it what is trained on and what is measured on.

        Raises:
            BadFile: the data cannot be read, or a record is of no form of the task.
            BadConfig: a share that leaves one side empty.
        """
        found = read_samples(self.data, self.form)
        trained, kept = split(found, self.held_out, self.form)
        return Read(found, trained, kept)

    def check(self) -> TextReport:
        """Looks for everything in the data that would spoil the training.

        The base is opened where there is one, unless records are so wrong that nothing could be trained.

        Raises:
            UsageError: the data or the base cannot be opened at all.
        """
        held_out = None if isinstance(self.held_out, float) else self.held_out
        without_base = partial(check_texts, self.data, self.form, held_out=held_out)
        if self.base is None:
            return without_base()
        try:
            read = self.look()
            self.labels(read)
        except BadFile:
            report = without_base()  # which names every bad record, and not the first alone
            if report.ok:
                raise
            return report
        base = open_language_base(self.base, kind=self.kind_for(read), labels=self.labels(read))
        length = min(base.context, LONGEST) if self.max_length is None else self.max_length

        def measure(sample: S) -> Measured:
            row = self.encode(sample, base, length)
            return Measured(row.size, row.counted, row.lost, row.ends(base))

        return check_texts(
            self.data, self.form, held_out=held_out, measure=measure,
            example=lambda sample: self.example(self.encode(sample, base, length), base),
        )  # fmt: skip

    def _rows(self, read: Read[S], opening: Opening[LanguageBase]) -> tuple[list[R], list[R], int]:
        """Returns what is trained on, what is measured on, and the tokens of a row at most."""
        length = self._length(opening.base, opening.adapter)
        for line in read.found.notes:
            opening.tell(line)
        for name, count in read.found.unused.items():
            opening.tell(f"the field {name!r} of {count} lines says nothing to this task and is not used")
        encode_some = partial(
            encode_all, encode=lambda sample: self.encode(sample, opening.base, length), length=length,
            note=opening.notes.append, tell=opening.tell,
        )  # fmt: skip
        rows = encode_some(read.trained, where=source_name(self.data))
        held_out = encode_some(read.kept, where=self._held_out_name) if read.kept else []
        for line in self.remarks([*rows, *held_out], opening.base):
            opening.tell(line)
        both = len({row.sample.digest for row in rows} & {row.sample.digest for row in held_out})
        if both:
            opening.tell(f"{both} of the held-out samples are trained on as well, so what is measured flatters")
        first = f"sample (line {rows[0].sample.line}), learned between ⟦ and ⟧: {self.example(rows[0], opening.base)}"
        opening.say(first)
        opening.notes.insert(0, first)
        return rows, held_out, length

    def _length(self, base: LanguageBase, adapter: AdapterConfig) -> int:
        """Returns the tokens of a sample at most, after a check that they fit into the context with what is before."""
        virtual = adapter.tokens if isinstance(adapter, TokenConfig) else 0
        room, less = base.context - virtual, f" less {virtual} virtual ones" if virtual else ""
        if room < 2:
            raise DoesNotFit(f"{virtual} virtual tokens leave no room for text: {base.id} reads {base.context} tokens")
        if self.max_length is None:
            return min(room, LONGEST)
        if self.max_length > room:
            raise DoesNotFit(
                f"max_length={self.max_length}: {base.id} reads {base.context} tokens{less}; give at most {room}"
            )
        return self.max_length

    @property
    def _held_out_name(self) -> str:
        return "what is held out" if isinstance(self.held_out, float) else source_name(self.held_out, "held-out data")

    def _named(self) -> str:
        stem = source_name(self.data).rpartition(".")[0] or source_name(self.data)
        return self.name or re.sub(r"\W+", "-", stem).strip("-") or "default"

    def _call(self, opening: Opening[LanguageBase], sample: S) -> Sequence[str]:
        words = [opening.base_name if word == "BASE" else word for word in self.call(sample)]
        return ("studio", *words, *(() if self.quantize is None else ("--quantize", self.quantize)))

    def _origin(
        self, opening: Opening[LanguageBase], data: str, rows: Sequence[R], length: int
    ) -> dict[str, str]:  # fmt: skip
        base = opening.base
        return opening.origin(self.task_name, data, self.licence) | {
            "kind": base.kind.name, "tokenizer": base.tokenizer_hash, "template": base.template_hash,
            "samples": str(len(rows)), "max_length": str(length), **self.origin(rows, base),
        }  # fmt: skip


def _path(given: Any) -> str:
    """What ``run.toml`` says of a source; an object has no path that a later command could name."""
    return str(given) if isinstance(given, (str, Path, float)) else ""
