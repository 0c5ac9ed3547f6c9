"""A picture of another program as one that is wanted here: what it says and can be used, and what cannot."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from PIL import Image

from studio.errors import BadConfig, BadFile, UnknownName
from studio.families.vocabulary import missing
from studio.pipelines.asking import Wanted
from studio.pipelines.drawing import texts_of
from studio.pipelines.foreign.reading import TOOLS, said_by
from studio.pipelines.foreign.said import Said, file_stem
from studio.pipelines.image import ImagePipeline
from studio.pipelines.making import read_tags
from studio.pipelines.metadata import open_picture, read_metadata
from studio.pipelines.naming import plain_name
from studio.pipelines.prompting.escaping import escape_prompt
from studio.shown import shown

__all__ = ["Recalled", "recall", "recalled_as"]

_TAG: Final = re.compile(r"(?<!\\)[ \t]*<(\w+):([^<>:]*)((?::[^<>]*)?)>")


@dataclass(frozen=True)
class Recalled:
    """What a picture says about how it was made.

    Args:
        content: of a picture that the studio made; None: another program did.
        said: of a picture of another program; None: the studio made it.
    """

    content: Mapping[str, Any] | None = None
    said: Said | None = None

    @property
    def base(self) -> str:
        """What it calls its base; ``""``: it does not say."""
        return str(self.content["base"]["id"]) if self.content else self.said.base if self.said else ""

    @property
    def rows(self) -> int:
        """How many pictures were computed together with it."""
        return int(self.content["rows"]) if self.content else 1


def recall(picture: str | Path | Image.Image) -> Recalled:
    """Reads what a picture says about how it was made.

    Args:
        picture: a PNG, JPEG or WebP of the studio, or of a program of :data:`~studio.pipelines.foreign.reading.TOOLS`.

    Raises:
        BadFile: there is none, it says nothing, or what it says is damaged.
    """
    image = picture if isinstance(picture, Image.Image) else open_picture(picture)
    texts = texts_of(image)
    if "studio" in texts:
        return Recalled(content=read_metadata(picture))
    said = said_by(texts)
    if said is None:
        what = "the picture" if isinstance(picture, Image.Image) else str(picture)
        found = ", ".join(sorted(texts)) or "none"
        raise BadFile(
            f"{what} does not say how it was made (texts found: {found}): neither the studio nor one of "
            f"{', '.join(TOOLS)} made it, or it was saved by a program that drops texts"
        )
    return Recalled(said=said)


def recalled_as(pipe: ImagePipeline, said: Said) -> tuple[Wanted, list[str]]:
    """Returns what a picture of another program says as one that is wanted, and what it says beside that.

    Args:
        pipe: which shall draw it, with the adapters that there are of the picture's.
        said: what it says.

    Returns:
        The picture, and what is not used, each as ``"name: value"``.
    """
    unused = [*said.unused]
    prompt, negative = _written(pipe, said, unused)
    numbers = dict(said.numbers)
    own, factor = pipe.base.defaults, numbers.get("upscale", 0)
    drop: dict[str, bool] = {
        "guidance": not own.negative and numbers.get("guidance") != 1,
        "embedded_guidance": own.embedded is None,
        "upscale_steps": factor <= 1 or not numbers.get("upscale_steps"),
        "upscale_strength": factor <= 1 or not 0 < numbers.get("upscale_strength", 0) <= 1,
        "upscale": factor <= 1,
    }
    for name in (name for name, dropped in drop.items() if dropped and name in numbers):
        value = numbers.pop(name)
        unused += [f"{name}: {value}"] if value else []
    return Wanted(prompt=prompt, negative=negative or None, resolved=(prompt, negative), **numbers), unused


def _written(pipe: ImagePipeline, said: Said, unused: list[str]) -> tuple[str, str]:
    """The prompts in this studio's language, with tags of the adapters that are here behind them."""
    known, tags = _names(pipe), dict[str, str]()
    inside = [(found[0].strip(), found[1], file_stem(found[2]), found[3]) for found in _TAG.finditer(said.prompt)]
    beside = [
        (f"adapter {one.name}: {one.strength:g}", "lora", one.name, f":{one.text:g}:{one.strength:g}")
        for one in said.adapters
    ]
    for written, kind, name, strengths in [*inside, *beside]:
        own = known.get(plain_name(name)) if kind in ("lora", "lyco") else None
        tag = f"<lora:{own}{strengths}>"
        if own is None or own in tags or not _reads(pipe, tag):
            unused.append(f"{written} (not given with --adapter)" if own is None else written)
        else:
            tags[own] = tag
    prompt, negative = (_read(pipe, _TAG.sub("", text), unused) for text in (said.prompt, said.negative))
    return " ".join(part for part in (prompt, *tags.values()) if part), negative


def _names(pipe: ImagePipeline) -> dict[str, str]:
    """What other programs call the adapters that are here: their files' names."""
    files = {plain_name(file_stem(source.file)): name for name, source in pipe.sources.items() if ":" not in name}
    return {**files, **{name: name for name in pipe.adapters}}


def _read(pipe: ImagePipeline, text: str, unused: list[str]) -> str:
    """A text as it is, or, where the prompt language refuses what the other program forgave, as plain words."""
    text = text.strip()
    absent = missing(pipe.pipe, text)
    unused += [f"embedding:{name} (not given with --adapter)" for name in absent]
    text = re.sub(r"(?i)embedding:", lambda found: found[0].replace(":", r"\:"), text) if absent else text
    if _reads(pipe, text):
        return text
    unused.append(f"brackets that are drawn as they stand: {shown(text)}")
    return escape_prompt(text.replace("<", r"\<").replace(">", r"\>"))


def _reads(pipe: ImagePipeline, text: str) -> bool:
    try:
        read_tags(pipe.base, text)
    except (BadConfig, UnknownName):
        return False
    return True
