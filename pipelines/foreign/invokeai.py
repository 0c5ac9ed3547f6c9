"""Pictures of InvokeAI: ``invokeai_metadata`` since version 3, ``sd-metadata`` and ``Dream`` before."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from studio.pipelines.foreign.said import Notes, Said, SaidAdapter, file_stem
from studio.pipelines.foreign.tree import json_object

__all__ = ["read"]

# what the picture says beside these is named as not used; keys without an effect on what is drawn say nothing
READ: Final = set("positive_prompt negative_prompt width height seed cfg_scale steps scheduler model loras".split())
SPARE: Final = set("app_version generation_mode rand_device board workflow guidance".split())
_AWAY: Final = re.compile(r"\[([^\[\]]*)\]")  # what version 2 leads away from stands in brackets in the prompt
_OPTION: Final = re.compile(r"\s-([sSWHCA])\s*(\S+)")
ADAPTERS_MOST: Final = 100


def read(texts: Mapping[str, str]) -> Said | None:
    """Reads what InvokeAI wrote.

    Args:
        texts: the texts of the picture.

    Returns:
        What it says; None: InvokeAI did not make it.

    Raises:
        BadFile: its text is damaged, or too long.
    """
    if "invokeai_metadata" in texts:
        return _new(json_object(texts["invokeai_metadata"], "invokeai_metadata"))
    for key in ("sd-metadata", "Sd-metadata"):
        if key in texts:
            return _old(json_object(texts[key], key))
    return _dream(texts["Dream"]) if "Dream" in texts else None


def _new(content: Mapping[str, Any]) -> Said:
    notes = Notes()
    notes.whole("steps", "steps", content.get("steps"))
    notes.whole("seed", "seed", content.get("seed"), least=0)
    notes.number("guidance", "cfg_scale", content.get("cfg_scale"))
    notes.number("embedded_guidance", "guidance", content.get("guidance"))
    notes.size(content.get("width"), content.get("height"))
    _scheduler(notes, content.get("scheduler"))
    for key, value in content.items():
        silent = value in (None, "", [], {}, False) or (key == "clip_skip" and value == 0)
        if key not in READ | SPARE and not silent:
            notes.leave(key, _name(value) if isinstance(value, Mapping) else value)
    return Said(
        tool="InvokeAI", prompt=str(content.get("positive_prompt") or ""),
        negative=str(content.get("negative_prompt") or ""), base=_name(content.get("model")),
        adapters=tuple(_adapters(content.get("loras"))), numbers=notes.numbers, unused=tuple(notes.unused),
    )  # fmt: skip


def _adapters(entries: Any) -> list[SaidAdapter]:
    found = []
    for entry in entries[:ADAPTERS_MOST] if isinstance(entries, list) else ():
        if isinstance(entry, Mapping) and _name(entry.get("model", entry.get("lora"))):
            notes = Notes()
            notes.number("weight", "weight", entry.get("weight", 1.0))
            weight = notes.numbers.get("weight", 1.0)
            found.append(SaidAdapter(file_stem(_name(entry.get("model", entry.get("lora")))), weight, weight))
    return found


def _old(content: Mapping[str, Any]) -> Said:
    """Version 2: one table for the picture, within that of the model."""
    image, notes = content.get("image"), Notes()
    image = image if isinstance(image, Mapping) else {}
    notes.whole("steps", "steps", image.get("steps"))
    notes.whole("seed", "seed", image.get("seed"), least=0)
    notes.number("guidance", "cfg_scale", image.get("cfg_scale"))
    notes.size(image.get("width"), image.get("height"))
    _scheduler(notes, image.get("sampler"))
    for key in ("variations", "postprocessing", "threshold", "perlin", "init_image_path", "hires_fix"):
        if image.get(key):
            notes.leave(key, image[key])
    prompt = image.get("prompt")
    if isinstance(prompt, list):
        parts = [one.get("prompt", "") for one in prompt if isinstance(one, Mapping)]
        prompt = " ".join(str(part) for part in parts)
    return _with_brackets(str(prompt or ""), str(content.get("model_weights") or ""), notes)


def _dream(text: str) -> Said:
    """Version 1: a command line, the prompt in quotation marks."""
    found = re.match(r'\s*"((?:[^"\\]|\\.)*)"', text)
    prompt, rest = (found[1], text[found.end() :]) if found else (text, "")
    options, notes = dict(_OPTION.findall(rest)), Notes()
    notes.whole("steps", "-s", options.get("s"))
    notes.whole("seed", "-S", options.get("S"), least=0)
    notes.number("guidance", "-C", options.get("C"))
    notes.size(options.get("W"), options.get("H"))
    _scheduler(notes, options.get("A"))
    return _with_brackets(prompt, "", notes)


def _with_brackets(prompt: str, base: str, notes: Notes) -> Said:
    away = ", ".join(part.strip() for part in _AWAY.findall(prompt))
    text = " ".join(_AWAY.sub(" ", prompt).split())
    return Said(
        tool="InvokeAI", prompt=text, negative=away, base=base, numbers=notes.numbers, unused=tuple(notes.unused)
    )  # fmt: skip


def _scheduler(notes: Notes, name: Any) -> None:
    """``dpmpp_2m_k`` is a sampler with the noise levels of Karras; ``k_lms`` is version 2's way to name one."""
    if isinstance(name, str):
        notes.scheduler(name.removesuffix("_k"), "Karras" if name.endswith("_k") else "")


def _name(value: Any) -> str:
    """Of a model: a text, or a table of which one field is its name."""
    if isinstance(value, Mapping):
        named = [value.get(key) for key in ("name", "model_name", "image_name", "key")]
        return next((name for name in named if isinstance(name, str)), "")
    return value if isinstance(value, str) else ""
