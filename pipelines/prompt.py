"""Adapters named in the prompt: ``a photo of sks dog <dog:0.8>``.

Forms of a tag, ``name`` being an adapter that is loaded:

- ``<dog>`` strength 1, ``<dog:0.8>`` strength 0.8, ``<dog:unet=0.8,text_encoder=0.3>`` per component;
- A1111's ``<lora:dog>``, ``<lora:dog:0.8>``, ``<lora:dog:0.3:0.8>`` (text encoders, then denoiser),
  ``<lora:dog:te=0.3:unet=0.8>``.

``\\<`` and ``\\>`` are the characters themselves; a ``<`` that opens nothing (``i <3 you``) is text. A tag that cannot
be read is refused, never drawn.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from studio.adapters import Strength
from studio.errors import BadConfig, UnknownName, nearest
from studio.given import is_text
from studio.pipelines.naming import plain_name

__all__ = ["TaggedPrompt", "check_text", "parse_prompt"]

_TAG = re.compile(r"(?<!\\)<([^<>]*)(?<!\\)>")
_OPENED = re.compile(r"(?<!\\)<([\w-]+:[^<>]*)")
_NAME = re.compile(r"[\w.-]+")


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
    prompt: str, known: Iterable[str], *, denoiser: str = "unet", encoders: Sequence[str] = ("text_encoder",)
) -> TaggedPrompt:
    """Takes the adapter tags out of a prompt.

    Args:
        prompt: the prompt as the user wrote it.
        known: names of the adapters that are loaded.
        denoiser: the pipeline's name of the part that denoises; the second number of A1111's form is for it.
        encoders: the pipeline's names of the text encoders; the first number of A1111's form is for them.

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
    reader = _Reader(prompt, names, denoiser, tuple(encoders))
    blend: dict[str, float | Strength] = {}
    for match in _TAG.finditer(prompt):
        name, strength = reader.read(match.group(1))
        if name in blend:
            raise BadConfig(f"the prompt {prompt!r} tags the adapter {name!r} twice; give it one strength")
        blend[name] = strength
    bare = _TAG.sub("\0", prompt)
    opened = _OPENED.search(bare)
    if opened:
        raise reader.malformed(opened.group(1), "it is not closed by '>'", closed=False)
    # a tag takes the blank in front of it along, so that the encoder reads what stands there without it
    text = re.sub(r"[ \t]*\0", "", bare).strip()
    return TaggedPrompt(text.replace(r"\<", "<").replace(r"\>", ">"), blend or None)


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
        values = [part.strip() for value in values for part in value.split(",")]
        numbers = [value for value in values if "=" not in value]
        if len(numbers) > (2 if a1111 else 1):
            hint = f"<{name}:{self.denoiser}=0.8,{self.encoders[0]}=0.3>" if self.encoders else f"<{name}:0.8>"
            raise self.malformed(inside, f"it has too many numbers; per component it is {hint}")
        named = [value for value in values if "=" in value]
        return name, self._strength([self._number(inside, n) for n in numbers], self._named(inside, named), a1111)

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
