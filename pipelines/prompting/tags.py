"""Adapters named in the prompt: ``a photo of sks dog <dog:0.8>``.

Forms of a tag, ``name`` being an adapter that is loaded:

- ``<dog>`` strength 1, ``<dog:0.8>`` strength 0.8, ``<dog:unet=0.8:te=0.3>`` per component;
- ``<dog:0@0,1@0.4>`` a strength that changes while it denoises: strength@part of the denoising, linear between; behind
  a number it is a factor of that;
- ``<dog:0.8:lbw=OUTALL>`` block weights: a preset, a list or blocks (:func:`studio.block_weights` has the forms);
- A1111's ``<lora:dog>``, ``<lora:dog:0.8>``, ``<lora:dog:0.3:0.8>`` (text encoders, then denoiser),
  ``<lora:dog:te=0.3:unet=0.8>``, and the others behind ``<lora:``.

``\\<`` and ``\\>`` are the characters themselves; a ``<`` that opens nothing (``i <3 you``) is text. A tag that cannot
be read is refused, never drawn.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from studio.adapters import Schedule, Strength
from studio.errors import BadConfig, UnknownName, nearest
from studio.given import is_text
from studio.pipelines.naming import plain_name
from studio.pipelines.prompting.brackets import script_of
from studio.shown import shown

__all__ = ["TaggedPrompt", "check_changes", "check_text", "parse_prompt"]

_TAG = re.compile(r"(?<!\\)<([^<>]*)(?<!\\)>")
_OPENED = re.compile(r"(?<!\\)<([\w-]+:[^<>]*)")
_NAME = re.compile(r"[\w.-]+")
_PLACE: Final = "\0"  # where a tag stood


@dataclass(frozen=True)
class TaggedPrompt:
    """A prompt taken apart.

    Args:
        text: what the text encoder reads.
        blend: the tags' adapters and strengths; ``None`` if the prompt has no tag.
    """

    text: str
    blend: dict[str, float | Strength] | None = field(default=None)


def parse_prompt(
    prompt: str,
    known: Iterable[str],
    *,
    denoiser: str = "unet",
    encoders: Sequence[str] = ("text_encoder",),
    blocks: Callable[[str, str], Mapping[str, float]] | None = None,
) -> TaggedPrompt:
    """Takes the adapter tags out of a prompt.

    Args:
        prompt: the prompt as the user wrote it.
        known: names of the adapters that are loaded.
        denoiser: the pipeline's name of the part that denoises; the second number of A1111's form is for it.
        encoders: the pipeline's names of the text encoders; the first number of A1111's form is for them.
        blocks: reads the block weights of an adapter, ``(name, text) -> pattern to number``; None: there are none.

    Raises:
        UnknownName: a tag names an adapter that is not loaded; the nearest is named.
        BadConfig: no text, a tag that cannot be read, or an adapter that is tagged twice.

    Example:
        >>> parse_prompt("a photo of sks dog <dog:0.8>, ink <lora:ink:0.5>", ["dog", "ink"])
        TaggedPrompt(text='a photo of sks dog, ink', blend={'dog': 0.8, 'ink': 0.5})
        >>> parse_prompt("i <3 dogs", ["dog"])
        TaggedPrompt(text='i <3 dogs', blend=None)
    """
    check_text(prompt)
    names = sorted(known)
    reader = _Reader(prompt, names, denoiser, tuple(encoders), blocks)
    blend: dict[str, float | Strength] = {}
    for match in _TAG.finditer(prompt):
        name, strength = reader.read(match.group(1))
        if name in blend:
            raise BadConfig(f"the prompt {prompt!r} tags the adapter {name!r} twice; give it one strength")
        blend[name] = strength
    bare = _TAG.sub(_PLACE, prompt)
    opened = _OPENED.search(bare)
    if opened:
        raise reader.malformed(opened.group(1), "it is not closed by '>'", closed=False)
    # a tag takes the blank in front of it along, so that the encoder reads what stands there without it
    text = re.sub(rf"[ \t]*{_PLACE}", "", bare).strip()
    return TaggedPrompt(text.replace(r"\<", "<").replace(r"\>", ">"), blend or None)


def check_changes(prompt: str, *, emphasis: bool) -> None:
    """Checks that no tag stands where words change while it denoises: it acts in every step.

    Args:
        prompt: the prompt with its tags.
        emphasis: whether words may count more or less.

    Raises:
        BadConfig: one does, or brackets that cannot be read.
    """
    script_of(_TAG.sub("", prompt), emphasis=emphasis)
    if script_of(_TAG.sub(_PLACE, prompt), emphasis=emphasis).changes(_PLACE):
        raise BadConfig(
            f"the prompt {shown(repr(prompt))} has a tag in brackets that change while it denoises, and a tag acts in "
            "every step; a strength that changes is <name:0@0,1@0.5>"
        )


def check_text(prompt: Any, what: str = "a prompt") -> None:
    """Checks that a prompt, or what else is read with it, is a text that can be encoded.

    Args:
        prompt: what was given.
        what: what it is called.

    Raises:
        BadConfig: it is not.
    """
    if not isinstance(prompt, str):
        raise BadConfig(f"{what} is a text, not {prompt!r}")
    if not is_text(prompt):
        raise BadConfig(f"{what} holds half a surrogate pair, which is no character: {prompt!r}; write it in UTF-8")


@dataclass(frozen=True)
class _Reader:
    prompt: str
    known: list[str]
    denoiser: str
    encoders: tuple[str, ...]
    blocks: Callable[[str, str], Mapping[str, float]] | None

    def read(self, inside: str) -> tuple[str, float | Strength]:
        name, *values = (part.strip() for part in inside.split(":"))
        a1111 = name == "lora" and bool(values) and not ("lora" in self.known and _is_number(values[0]))
        if a1111:
            name, *values = values
        if not _NAME.fullmatch(name):
            raise self.malformed(inside, "the name of an adapter has letters, digits, '_' and '-' alone")
        name = name if name in self.known else plain_name(name)  # the file's name with its dots
        if name not in self.known:
            raise self._unknown(name)
        schedule = self._schedule(inside, [value for value in values if "@" in value])
        blocks = self._blocks(inside, name, [value for value in values if value.startswith("lbw=")])
        values = [value for value in values if "@" not in value and not value.startswith("lbw=")]
        values = [part.strip() for value in values for part in value.split(",")]
        numbers = [value for value in values if "=" not in value]
        if len(numbers) > (2 if a1111 else 1):
            hint = f"<{name}:{self.denoiser}=0.8,{self.encoders[0]}=0.3>" if self.encoders else f"<{name}:0.8>"
            raise self.malformed(inside, f"it has too many numbers; per component it is {hint}")
        named = [value for value in values if "=" in value]
        read = self._strength([self._number(inside, n) for n in numbers], self._named(inside, named), a1111)
        if schedule is None and blocks is None:
            return name, read
        whole = read if isinstance(read, Strength) else Strength(read)
        components: dict[str, Any] = dict(whole.components)
        return name, Strength(whole.value, blocks=blocks, schedule=schedule, **components)

    def _schedule(self, inside: str, said: Sequence[str]) -> Schedule | None:
        """What ``0@0,1@0.4`` says."""
        if not said:
            return None
        pairs = [part.partition("@") for part in said[0].split(",")]
        if len(said) > 1 or not all(sign for _, sign, _ in pairs):
            raise self.malformed(inside, "a schedule is strength@part,strength@part, once")
        points = tuple((self._number(inside, to), self._number(inside, one)) for one, _, to in pairs)
        try:
            return Schedule(points)
        except BadConfig as problem:
            raise self.malformed(inside, str(problem)) from None

    def _blocks(self, inside: str, name: str, said: Sequence[str]) -> Mapping[str, float] | None:
        """What ``lbw=OUTALL`` says."""
        if not said:
            return None
        if self.blocks is None or len(said) > 1:
            raise self.malformed(inside, "lbw= stands there twice" if said[1:] else "this model has no blocks to weigh")
        try:
            return self.blocks(name, said[0].removeprefix("lbw="))
        except BadConfig as problem:
            raise self.malformed(inside, str(problem)) from None

    def _named(self, inside: str, pairs: Iterable[str]) -> dict[str, Any]:
        """Component -> number, of ``unet=0.8``, ``te=0.3``."""
        found: dict[str, Any] = {}
        for key, _, number in (pair.partition("=") for pair in pairs):
            parts = self._components(inside, key.strip())
            twice = next((part for part in parts if part in found), None)
            if twice is not None:
                raise self.malformed(inside, f"{twice!r} has two numbers; which one is meant?")
            found |= dict.fromkeys(parts, self._number(inside, number))
        return found

    def _strength(self, numbers: Sequence[float], named: Mapping[str, Any], a1111: bool) -> float | Strength:
        if len(numbers) == 2:  # text encoders, then denoiser
            named = {**dict.fromkeys(self.encoders, numbers[0]), self.denoiser: numbers[1], **named}
        value = numbers[0] if len(numbers) == 1 else 1.0
        if not named:
            return value
        if a1111 and len(numbers) == 1:  # there, a part named replaces the number instead of multiplying it
            named = {part: named.get(part, value) for part in (*self.encoders, self.denoiser)}
            value = 1.0
        return Strength(value, **named)

    def _components(self, inside: str, key: str) -> tuple[str, ...]:
        if key == "te":
            return self.encoders
        if key == "unet" or key == self.denoiser:
            return (self.denoiser,)
        if key in self.encoders:
            return (key,)
        known = (self.denoiser, *self.encoders, "te")
        raise self.malformed(inside, f"{key!r} is no component of this base; it has {', '.join(known)}")

    def _number(self, inside: str, text: str) -> float:
        if not _is_number(text):
            raise self.malformed(inside, f"{text!r} is not a number")
        return float(text)

    def _unknown(self, name: str) -> UnknownName:
        close = nearest(name, self.known, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        loaded = f"loaded: {', '.join(self.known)}" if self.known else "none is loaded"
        return UnknownName(
            f"the prompt {self.prompt!r} asks for the adapter {name!r}, which is not loaded{hint} ({loaded}; "
            f"write \\< for the character)"
        )

    def malformed(self, inside: str, reason: str, *, closed: bool = True) -> BadConfig:
        tag = f"<{inside}>" if closed else f"<{inside}"
        return BadConfig(
            f"the tag {tag!r} in the prompt {self.prompt!r} cannot be read: {reason}; "
            "a tag is <name:0.8>, and \\< is the character"
        )


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text)) and "_" not in text
    except ValueError:
        return False
