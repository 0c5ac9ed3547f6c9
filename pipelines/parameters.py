"""A1111's text about a picture, which it, its forks and the picture sites read: written, and read again.

::

    a photo of sks dog <lora:dog:0.8>
    Negative prompt: blurry
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 123, Size: 512x512, Model: "a, b"

A value with a comma, a colon, a line break or a quotation mark is written as JSON writes a text. The last line is one
of fields if A1111 finds three of them in it; a prompt may have lines of its own before it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from studio.adapters import Strength
from studio.pipelines.metadata import AdapterUse, strength_from_json
from studio.pipelines.naming import SILENT
from studio.pipelines.word_uses import WordUse

__all__ = ["Parameters", "parameters_text", "read_parameters"]

FEWEST = 3  # fields of a line of fields
NEGATIVE: Final = "Negative prompt:"
_KEY: Final = re.compile(r"\s*(\w[\w \-/]{0,100}):\s*")
_IN_QUOTES: Final = re.compile(r'"(?:\\.|[^\\"])+"(?=,|$)')
_SPECIAL: Final = re.compile(r'[,:"\n\r]|^\s|\s$')


@dataclass(frozen=True)
class Parameters:
    """A1111's text taken apart.

    Args:
        prompt: with its tags.
        negative: may be empty.
        fields: what stands in the last line, in its order.
    """

    prompt: str
    negative: str
    fields: Mapping[str, str]


def parameters_text(
    *,
    text: str,
    negative: str,
    fields: Mapping[str, str | int | float],
    adapters: Sequence[AdapterUse],
    encoders: Sequence[str],
    denoiser: str,
    embeddings: Sequence[WordUse] = (),
) -> str:
    """Returns the text that A1111 writes under ``parameters``.

    Args:
        text: the prompt without tags; every adapter is written behind it as ``<lora:file:strength>``.
        negative: the negative prompt, may be empty.
        fields: what stands in the last line, in order.
        adapters: the adapters that acted.
        encoders: names of the text encoders.
        denoiser: name of the denoiser.
        embeddings: the learned words that the prompts have.

    Example:
        >>> print(parameters_text(text="a dog", negative="", fields={"Steps": 20, "Model": "a, b"}, adapters=[],
        ...     encoders=["text_encoder"], denoiser="unet"))
        a dog
        Steps: 20, Model: "a, b"
    """
    tags = " ".join(_tag(use, encoders, denoiser) for use in adapters)
    lines = [f"{text} {tags}".strip()]
    if negative:
        lines.append(f"{NEGATIVE} {negative}")
    hashes = [f"{_stem(use)}: {use.lora_hash[:12]}" for use in adapters if use.lora_hash]
    last = dict(fields)
    version = last.pop("Version", None)
    if hashes:
        last["Lora hashes"] = ", ".join(hashes)
    words = [f"{use.name}: {use.sha256[:12]}" for use in embeddings if use.sha256]
    if words:
        last["TI hashes"] = ", ".join(words)
    if version is not None:
        last["Version"] = version
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in last.items()))
    return "\n".join(lines)


def read_parameters(text: str) -> Parameters:
    """Takes A1111's text apart, as A1111 does, in linear time.

    Args:
        text: what stands under ``parameters``, or in a file's ``UserComment``.

    Example:
        >>> read = read_parameters('a dog\\nNegative prompt: blurry\\nSteps: 20, Seed: 1, Model: "a, b"')
        >>> read.prompt, read.negative, dict(read.fields)
        ('a dog', 'blurry', {'Steps': '20', 'Seed': '1', 'Model': 'a, b'})
    """
    lines = text.strip().split("\n")
    fields = _fields(lines[-1])
    if len(fields) < FEWEST:
        fields = {}
    else:
        lines.pop()
    first = next((number for number, line in enumerate(lines) if line.strip().startswith(NEGATIVE)), len(lines))
    away = [line.strip().removeprefix(NEGATIVE).strip() for line in lines[first:]]
    return Parameters("\n".join(line.strip() for line in lines[:first]).strip(), "\n".join(away).strip(), fields)


def _fields(line: str) -> dict[str, str]:
    """The fields of a line: ``name: value`` with commas between, a value in quotation marks as JSON writes a text."""
    found: dict[str, str] = {}
    place = 0
    while place < len(line):
        comma = line.find(",", place)
        end = len(line) if comma < 0 else comma
        key = _KEY.match(line, place, end)
        if key:
            quoted = _IN_QUOTES.match(line, key.end())
            end = quoted.end() if quoted else end
            found[key[1]] = _unquoted(line[key.end() : end]) if quoted else line[key.end() : end]
        place = end + 1
    return found


def _unquoted(value: str) -> str:
    try:
        return str(json.loads(value, strict=False))
    except ValueError:  # a path of Windows, whose strokes escape nothing
        return value


def _tag(use: AdapterUse, encoders: Sequence[str], denoiser: str) -> str:
    strength = strength_from_json(use.strength)
    if not isinstance(strength, Strength):
        return f"<lora:{_stem(use)}:{strength:g}>"
    text = strength.at(encoders[0], "") if encoders else strength.value
    return f"<lora:{_stem(use)}:{_points(text, strength)}:{_points(strength.at(denoiser, ''), strength)}>"


def _points(number: float, strength: Strength) -> str:
    """A number, or under a schedule its points as sd-webui-loractl writes them."""
    schedule = strength.schedule
    if schedule is None or schedule.over != "progress":
        return f"{number:g}"
    return ",".join(f"{number * factor:g}@{place:g}" for place, factor in schedule.points)


def _stem(use: AdapterUse) -> str:
    """What A1111 finds an adapter by: its file's name, and where that says nothing or breaks a tag, the adapter's."""
    stem = Path(use.file).stem if use.file else use.name
    return use.name if stem in SILENT or re.search(r"[<>:,\n]", stem) else stem


def _quoted(value: str | int | float) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if _SPECIAL.search(text) else text
