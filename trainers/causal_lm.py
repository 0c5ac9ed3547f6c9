"""Causal language models: questions and answers, conversations, or plain text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from studio.adapters import AdapterConfig
from studio.adapters.tokens.contract import TokenConfig
from studio.config import check
from studio.errors import BadConfig, DoesNotFit
from studio.families.language import LANGUAGE_BASES, LanguageBase, open_language_base
from studio.trainers.language.causal import Causal, Question
from studio.trainers.language.samples import encode_all, split
from studio.trainers.language.texts import TokenRow, marked, question, render, system_of
from studio.trainers.loop.plan import Plan
from studio.trainers.loop.task import AdapterLike, Say
from studio.trainers.opening import Opening, open_with_recipe

if TYPE_CHECKING:
    from studio.datasets.chat import Sample, Samples

__all__ = ["CausalLM"]

SHOWN: Final = 4  # questions that previews ask where none are given
LONGEST: Final = 1024  # tokens of a sample where nothing is said; contexts of 128k would fill any memory


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
        quantize: what of the base is kept in fewer bits, and how: ``"nf4"``, ``"nf4,text_encoder_2=int8"``; None:
            nothing.

    Raises:
        BadConfig: a field with an impossible value.

    Example:
        >>> CausalLM(base="facts", data="questions.jsonl", held_out=0.1).task_name
        'causal-lm'
    """

    task_name: ClassVar[str] = "causal-lm"

    base: Any
    data: str | Path
    held_out: str | Path | float | None = None
    max_length: int | None = None
    answers: int = 200
    preview_prompts: tuple[str, ...] | None = None
    preview_tokens: int = 32
    name: str | None = None
    licence: str | None = None
    quantize: str | None = None

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

    def open(self, adapter: AdapterLike, plan: Plan, say: Say) -> Causal:
        """See :meth:`studio.trainers.Task.open`."""
        if plan.fit is not None:
            from studio.trainers.forecast.before import check_before

            check_before(self, adapter, plan, say)
        read = self._look()
        opening = open_with_recipe(
            self.task_name, self.base, open_language_base, LANGUAGE_BASES, adapter=adapter, plan=plan, say=say,
            quantize=self.quantize,
        )  # fmt: skip
        base, length = opening.base, self._length(opening.base, opening.adapter)
        rows, held_out, digests = self._read(read, opening, length)
        name = self.name or re.sub(r"\W+", "-", Path(self.data).stem).strip("-") or "default"
        inputs = {
            "base": base.id, "base_hash": base.hash, "tokenizer": base.tokenizer_hash, "template": base.template_hash,
            **digests, **opening.inputs,
        }  # fmt: skip
        return Causal(
            base=base, adapter=opening.adapter, plan=opening.plan, rates={"": opening.rate},
            name=name,
            settings={"task": self.task_name, "max_length": length, "samples": len(rows), **_marks(rows, base),
                      **({} if self.quantize is None else {"quantize": self.quantize})},
            recorded={"base": opening.base_name, "data": str(self.data), "held_out": str(self.held_out or ""),
                      "name": name},
            inputs=inputs, samples=rows, held_out=held_out, previews=self._previews(base, held_out or rows),
            start=opening.start, call=("studio", "complete", opening.base_name, _asked(rows[0].sample),
                  *(() if self.quantize is None else ("--quantize", self.quantize))),
            answers=self.answers, preview_tokens=self.preview_tokens,
            origin=self._origin(opening, digests["data"], rows, length), say=say, notes=opening.notes,
        )  # fmt: skip

    def _look(self) -> tuple[Samples, list[Sample], list[Sample]]:
        """Reads the data: what is there, and of it what is trained on and what is measured on."""
        from studio.datasets.chat import read_samples

        read = read_samples(self.data)
        return read, *split(read, self.held_out)

    def _read(
        self, found: tuple[Samples, list[Sample], list[Sample]], opening: Opening[LanguageBase], length: int
    ) -> tuple[list[TokenRow], list[TokenRow], dict[str, str]]:
        """Returns what is trained on, what is measured on, and what identifies them."""
        from studio.datasets.chat import samples_digest

        read, trained, kept = found
        for name, count in read.unused.items():
            opening.tell(f"the field {name!r} of {count} lines says nothing about the text and is not used")
        encode_some = partial(
            encode_all, base=opening.base, length=length, note=opening.notes.append, tell=opening.tell
        )
        rows = encode_some(trained, where=Path(self.data).name)
        held_out = encode_some(kept, where=self._held_out_name) if kept else []
        both = len({row.sample.digest for row in rows} & {row.sample.digest for row in held_out})
        if both:
            opening.tell(f"{both} of the held-out samples are trained on as well, so what is measured flatters")
        first = rows[0].sample
        example = f"sample (line {first.line}), learned between ⟦ and ⟧: {marked(first, opening.base)}"
        opening.say(example)
        opening.notes.insert(0, example)
        digests = {"data": samples_digest(trained)} | ({"held_out": samples_digest(kept)} if kept else {})
        return rows, held_out, digests

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
        share = isinstance(self.held_out, float)
        return "what is held out" if share else Path(str(self.held_out)).name

    def _ask(self, base: LanguageBase, rows: Sequence[TokenRow], text: str) -> str:
        """Returns a question of ``preview_prompts`` as the model reads it, asked as the samples ask."""
        if not rows[0].sample.chat:
            return text
        system = system_of([row.sample for row in rows])
        before = [{"role": "system", "content": system}] if system else []
        return base.write([*before, {"role": "user", "content": text}], asking=True)

    def _previews(self, base: LanguageBase, rows: Sequence[TokenRow]) -> list[Question]:
        if self.preview_prompts is None:
            some = [row.sample for row in rows if row.sample.asked][:SHOWN]
            return [
                Question(question(sample, base), sample.chat, f"{_last(sample)} (wanted: {_short(sample.answer)})")
                for sample in some
            ]
        chat = rows[0].sample.chat
        asked = [self._ask(base, rows, text) for text in self.preview_prompts]
        return [Question(text, chat, prompt) for text, prompt in zip(asked, self.preview_prompts, strict=True)]

    def _origin(
        self, opening: Opening[LanguageBase], data: str, rows: Sequence[TokenRow], length: int
    ) -> dict[str, str]:
        system = system_of([row.sample for row in rows])
        return opening.origin(self.task_name, data, self.licence) | {
            "tokenizer": opening.base.tokenizer_hash, "template": opening.base.template_hash,
            "form": "chat" if any(row.sample.chat for row in rows) else "text", "samples": str(len(rows)),
            "max_length": str(length), **({"system": system} if system else {}),
        }  # fmt: skip


def _marks(rows: Sequence[TokenRow], base: LanguageBase) -> dict[str, Any]:
    """What earlier versions left out of conversations: with it, a run that they began would learn other texts."""
    chats = [render(row.sample, base) for row in rows if row.sample.chat]
    begins = {base.begins(text) for text, _ in chats} - {""}
    usual = base.tokenizer.eos_token or ""
    ends = {end for text, spans in chats for _, at in spans for end in base.end_marks if text[:at].endswith(end)}
    marks = {"begins_with": sorted(begins), "ends_with": sorted(ends - {usual})}
    return {name: found for name, found in marks.items() if found}


def _asked(sample: Sample) -> str:
    """What a sample asks, to try the adapter with."""
    return " ".join((sample.turns[-2][1] if sample.chat else sample.prompt).split()) or "..."


def _last(sample: Sample) -> str:
    return _short(sample.turns[-2][1] if sample.chat else sample.prompt)


def _short(text: str, most: int = 120) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 3]}..."
