"""Causal language models: questions and answers, conversations, or plain text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from studio.adapters import AdapterConfig
from studio.adapters.tokens.contract import TokenConfig
from studio.config import check
from studio.device import choose_device, choose_dtype
from studio.errors import BadConfig, BadFile, DoesNotFit
from studio.families.causal import LANGUAGE_BASES, LanguageBase, open_language_base
from studio.trainers.language.causal import Causal, Shown
from studio.trainers.language.texts import Encoded, encode, marked, question
from studio.trainers.loop.plan import Plan
from studio.trainers.loop.task import Say
from studio.trainers.recipes import RATE_FACTORS, recipe_for

if TYPE_CHECKING:
    from studio.datasets.chat import Sample, Samples

__all__ = ["CausalLM"]

SHOWN: Final = 4  # questions that previews ask where none are given
LONGEST: Final = 1024  # tokens of a sample where nothing is said; contexts of 128k would fill any memory
NAMED: Final = 5  # samples that are named one by one in a message


@dataclass(frozen=True, kw_only=True)
class CausalLM:
    """Teaches a causal language model to answer as the samples do.

    Two facts suffice: ``base`` and ``data``. :mod:`studio.datasets.chat` has the forms of a line of data. The answers
    are learned, each with the end token; questions are only read.

    Attributes:
        base: the name of an embedded base (``"facts"``), a transformers folder, or a pair of a model and its tokenizer.
        data: JSONL file with the samples.
        held_out: another one that is only measured on; or which share of ``data``, in (0, 1), is kept for that (always
            the same samples, equal ones on the same side). None: nothing is measured.
        max_length: tokens of a sample at most; longer ones lose their end, which is told. None: the base's context, and
            at most 1024.
        answers: how many held-out samples are answered for the exact match; 0 measures the loss alone.
        preview_prompts: what previews ask; None: the first few held-out questions, or those of the data.
        preview_tokens: tokens of a preview's answer at most.
        name: the adapter's name; None: that of the data file.
        licence: what the adapter file says about its licence.

    Raises:
        BadConfig: a field with an impossible value.

    Example:
        >>> CausalLM(base="facts", data="questions.jsonl", held_out=0.1).kind
        'causal-lm'
    """

    kind: ClassVar[str] = "causal-lm"

    base: Any
    data: str | Path
    held_out: str | Path | float | None = None
    max_length: int | None = None
    answers: int = 200
    preview_prompts: tuple[str, ...] | None = None
    preview_tokens: int = 32
    name: str | None = None
    licence: str | None = None

    def __post_init__(self) -> None:
        check(self)
        if isinstance(self.held_out, float) and not 0 < self.held_out < 1:
            raise BadConfig(f"held_out={self.held_out!r}: a share lies between 0 and 1; or name a file")
        for name, least in (("max_length", 2), ("answers", 0), ("preview_tokens", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise BadConfig(f"{name}={value!r}: {name} must be at least {least}")
        if self.name is not None and not re.fullmatch(r"[\w-]+", self.name):
            raise BadConfig(f"name={self.name!r}: use letters, digits, '_' and '-'")

    def open(self, adapter: AdapterConfig | None, plan: Plan, say: Say) -> Causal:
        """See :meth:`studio.trainers.loop.task.Task.open`."""
        from studio.datasets.chat import read_samples, samples_digest

        device = choose_device(plan.device)
        precision = choose_dtype(plan.precision, device, training=True)
        if precision.note:
            say(precision.note)
        say(f"opening the base {self._base_name()}")
        base = open_language_base(self.base, device=device)
        recipe = recipe_for(self.kind, base)
        adapter = adapter or recipe.adapter()
        steps = recipe.steps if plan.steps is None else plan.steps
        rate = recipe.learning_rate * RATE_FACTORS.get(adapter.method, 1.0)
        plan = plan.filled(
            steps=steps, learning_rate=rate, batch_size=recipe.batch_size, warmup=round(recipe.warmup * steps),
            schedule=recipe.schedule, beta2=recipe.beta2, preview_every=0,
        )  # fmt: skip
        assert plan.learning_rate is not None, "the plan has been filled"
        length = self._length(base, adapter)
        read = read_samples(self.data)
        trained, kept = self._split(read)
        notes: list[str] = []
        self._note_unused(read, notes, say)
        rows = _encoded(trained, base, length, notes, say, Path(self.data).name)
        held_out = _encoded(kept, base, length, notes, say, self._held_out_name) if kept else []
        both = len({row.sample.digest for row in rows} & {row.sample.digest for row in held_out})
        if both:
            notes.append(f"{both} of the held-out samples are trained on as well, so what is measured flatters")
            say(notes[-1])
        example = f"sample (line {rows[0].sample.line}), learned between ⟦ and ⟧: {marked(rows[0].sample, base)}"
        say(example)
        notes.insert(0, example)
        inputs = {
            "base": base.id, "base_hash": base.hash, "tokenizer": base.tokenizer_hash, "template": base.template_hash,
            "data": samples_digest(trained),
        } | ({"held_out": samples_digest(kept)} if kept else {})  # fmt: skip
        name = self.name or re.sub(r"\W+", "-", Path(self.data).stem).strip("-") or "default"
        return Causal(
            base=base, adapter=adapter, name=name, plan=plan, rates={"": plan.learning_rate},
            settings={"task": self.kind, "max_length": length, "samples": len(rows)},
            recorded={"base": self._base_name(), "data": str(self.data), "held_out": str(self.held_out or "")},
            inputs=inputs, samples=rows, held_out=held_out, previews=self._previews(base, held_out or rows),
            answers=self.answers, preview_tokens=self.preview_tokens,
            origin=self._origin(base, plan, inputs, rows, length), say=say, notes=notes,
        )  # fmt: skip

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

    def _split(self, read: Samples) -> tuple[list[Sample], list[Sample]]:
        """Returns what is trained on, and what is measured on.

        A share is kept by the samples' own hashes, so it does not depend on their order, and equal samples stay
        together.
        """
        from studio.datasets.chat import read_samples

        if self.held_out is None:
            return list(read.items), []
        if not isinstance(self.held_out, float):
            kept = read_samples(self.held_out)
            return list(read.items), list(kept.items)
        limit = self.held_out * 16**16
        sides: tuple[list[Sample], list[Sample]] = ([], [])
        for sample in read.items:
            sides[int(sample.digest[:16], 16) < limit].append(sample)
        if not sides[0] or not sides[1]:
            raise BadConfig(
                f"held_out={self.held_out} of the {len(read.items)} samples of {read.file} leaves one side without a "
                "sample; give another share, or a file"
            )
        return sides

    @property
    def _held_out_name(self) -> str:
        share = isinstance(self.held_out, float)
        return "what is held out" if share else Path(str(self.held_out)).name

    def _note_unused(self, read: Samples, notes: list[str], say: Say) -> None:
        for name, count in read.unused.items():
            notes.append(f"the field {name!r} of {count} lines says nothing about the text and is not used")
            say(notes[-1])

    def _previews(self, base: LanguageBase, rows: Sequence[Encoded]) -> list[Shown]:
        if self.preview_prompts is None:
            some = [row.sample for row in rows if row.sample.asked][:SHOWN]
            return [
                Shown(question(sample, base), sample.chat, f"{_last(sample)} (wanted: {_short(sample.answer)})")
                for sample in some
            ]
        chat = rows[0].sample.chat
        asked = [
            base.write([{"role": "user", "content": text}], asking=True) if chat else text
            for text in self.preview_prompts
        ]
        return [Shown(text, chat, prompt) for text, prompt in zip(asked, self.preview_prompts, strict=True)]

    def _base_name(self) -> str:
        if isinstance(self.base, LanguageBase):  # opened already
            embedded = self.base.folder is None or self.base.id in LANGUAGE_BASES
            return self.base.id if embedded else str(self.base.folder)
        return str(self.base) if isinstance(self.base, (str, Path)) else type(self.base[0]).__name__

    def _origin(
        self, base: LanguageBase, plan: Plan, inputs: dict[str, str], rows: Sequence[Encoded], length: int
    ) -> dict[str, str]:
        origin = {
            "task": self.kind, "base": base.id, "base_hash": base.hash, "tokenizer": base.tokenizer_hash,
            "template": base.template_hash, "form": "chat" if any(row.sample.chat for row in rows) else "text",
            "seed": str(plan.seed), "steps": str(plan.steps), "dataset": inputs["data"], "samples": str(len(rows)),
            "max_length": str(length), "learning_rate": repr(plan.learning_rate), "batch_size": str(plan.batch_size),
        }  # fmt: skip
        return origin | ({"licence": self.licence} if self.licence else {})


def _encoded(
    samples: Sequence[Sample], base: LanguageBase, length: int, notes: list[str], say: Say, where: str
) -> list[Encoded]:
    """Encodes samples, and says what was cut off; a sample without any of its answer is left out by name.

    Raises:
        BadFile: none is left.
    """
    rows = [encode(sample, base, length) for sample in samples]
    whole = [row for row in rows if any(row.learned[1:])]
    gone = [str(row.sample.line) for row in rows if not any(row.learned[1:])]
    if not whole:
        raise BadFile(f"no sample of {where} has a part of its answer within {length} tokens: raise max_length")
    told = []
    if gone:
        more = f" and {len(gone) - NAMED} more" if len(gone) > NAMED else ""
        lines = f"line{'s' if gone[1:] else ''} {', '.join(gone[:NAMED])}{more}"
        told.append(f"left out of {where}: {lines}: the whole answer lies behind the first {length} tokens")
    cut = [row.lost for row in whole if row.lost]
    if cut:
        told.append(
            f"{len(cut)} of {len(whole)} samples of {where} are longer than {length} tokens and lose their end: "
            f"{sum(cut)} tokens in all"
        )
    count = sum(sum(row.learned[1:]) for row in whole)
    notes.append(f"{len(whole)} samples of {where}: {sum(len(row.tokens) for row in whole)} tokens, {count} learned")
    notes.extend(told)
    for line in told:
        say(line)
    return whole


def _last(sample: Sample) -> str:
    return _short(sample.turns[-2][1] if sample.chat else sample.prompt)


def _short(text: str, most: int = 120) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 3]}..."
