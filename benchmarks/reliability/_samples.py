"""Files of texts for the language tuner: read as they were written, or refused with the number of the line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.reliability._folders import LINKS
from benchmarks.reliability._pictures import encoded
from benchmarks.reliability._terminal import HOSTILE, ran, refusal
from benchmarks.reliability._written import (
    ANSWER,
    ASKED,
    BARE,
    CHAT,
    MESSAGES,
    OPENED,
    PAIR,
    TOLD,
    USER,
    WRONG_SAMPLES,
)
from studio.datasets.chat import read_samples
from studio.errors import BadFile
from studio.families.language import LanguageBase, open_language_base
from studio.trainers import CausalLM, Plan

__all__ = ["texts", "trained"]

Made = Iterator[tuple[str, Callable[[Path], str]]]


def texts() -> Made:
    """Every form, every encoding, every break."""
    for name, line in (("pair", PAIR), ("asked", ASKED), ("chat", CHAT), ("bare", BARE)):
        text = f"{json.dumps(line)}\n{json.dumps(BARE | {'text': 'Zinc, too.'})}"
        for encoding in ("utf-8", "utf-8-sig", "utf-16"):
            yield f"{name}, {encoding}", partial(_read, text.encode(encoding), (line,))
    for ends in ("\n", "\r\n", "\r", "\n\n\n"):
        text = f"{json.dumps(PAIR)}{ends}{json.dumps(BARE)}"
        yield f"line ends {ends!r}", partial(_read, text.encode(), (PAIR, BARE))
    yield from _odd()
    for name, data in _wrong():
        yield f"refused: {name}", partial(_refused, data)
    for kind, make in {**LINKS, "folder": Path.mkdir, "nothing": None}.items():
        yield f"refused: a {kind}", partial(_refused, make)
    for name, lines in OPENED:
        yield name, partial(_opened, lines)


def _odd() -> Made:
    """Texts with characters that mean something else where."""
    for name, words in (("U+2028", "a\u2028b"), ("a terminal's", TOLD), ("a zero", "a\0b"), ("emoji", "\U0001f415")):
        lines = {"pair": {**PAIR, "completion": words}, "chat": {"messages": [USER, {**ANSWER, "content": words}]}}
        for kind, line in lines.items():
            for ascii_only in (True, False):
                data = json.dumps(line, ensure_ascii=ascii_only).encode()
                yield f"{name} in a {kind}, {ascii_only}", partial(_read, data, (line,))
    for mark in ("<|end|>", "<|endoftext|>", "<s>", "</s>"):
        content = f"a {mark} b"
        yield f"the mark {mark} in a chat", partial(_opened, [{"messages": [USER, {**ANSWER, "content": content}]}])
        yield f"the mark {mark} in a bare text", partial(_opened, [{"text": content}])


def _wrong() -> Iterator[tuple[str, Any]]:
    """Files that hold no samples, or a line that is none."""
    for data in (*WRONG_SAMPLES, encoded(Image.new("RGB", (9, 9)))):
        yield ascii(data[:50]), data
    for name, messages in MESSAGES:
        yield f"messages: {name}", json.dumps({"messages": messages}).encode()
    yield "a terminal's field", json.dumps({HOSTILE: "x"}).encode()
    yield "a long field", json.dumps({"y" * 100_000: "x"}).encode()
    yield "behind 10,000 right lines", (json.dumps(BARE) + "\n").encode() * 10_000 + b"x"


def _made(content: Any, place: Path) -> Path:
    place.mkdir(parents=True)
    file = place / "data.jsonl"
    if callable(content):
        content(file)
    elif content is not None:
        file.write_bytes(content)
    return file


def _read(data: bytes, wanted: Sequence[dict[str, Any]] | None, place: Path) -> str:
    """Wants the first samples as they were written; None: read or refused."""
    file = _made(data, place)
    try:
        items = read_samples(file).items
    except BadFile:
        if wanted is not None:
            raise RuntimeError("it is refused") from None
        return _words(file)
    for sample, line in zip(items, wanted or (), strict=False):
        said = {
            "prompt": sample.prompt, "completion": sample.completion, "text": sample.completion,
            "messages": [{"role": role, "content": content} for role, content in sample.turns],
        }  # fmt: skip
        if "instruction" in line:
            said |= dict(zip(("instruction", "output"), (content for _, content in sample.turns), strict=True))
        if any(said[name] != value for name, value in line.items()):
            return f"it reads {sample!r}"
    return "" if len(items) >= len(wanted or ()) else f"{len(items)} samples"


def _refused(content: Any, place: Path) -> str:
    return _words(_made(content, place))


def _words(file: Path) -> str:
    run = file.parent / "run"
    fault = refusal("tune", "causal-lm", "facts", file, "-o", run, "--steps", "1", says="data.jsonl")
    return fault or ("its run is left behind" if run.exists() else "")


@cache
def _facts() -> LanguageBase:
    return open_language_base("facts")


def _opened(lines: Sequence[dict[str, Any]], place: Path) -> str:
    """Opens the task on samples: what is learned of each is its answers and their ends, nothing else."""
    file = _made("\n".join(map(json.dumps, lines)).encode(), place)
    said: list[str] = []
    base = _facts()
    lesson = CausalLM(base=base, data=file, max_length=128).open(None, Plan(steps=1), said.append)
    if len(lesson.samples) < len(lines) and not any("left out" in line for line in said):
        return f"{len(lesson.samples)} of {len(lines)} samples are trained, and nothing is said"
    for row in lesson.samples:
        learned = base.tokenizer.decode([token for token, own in zip(row.tokens, row.learned, strict=True) if own])
        answers = [text for role, text in row.sample.turns if role == "assistant"] or [row.sample.completion]
        whole = base.tokenizer.decode(base.tokenizer("".join(answers), add_special_tokens=False)["input_ids"])
        bare = [_without_ends(text, base) for text in (learned, whole)]
        if not (bare[1] == bare[0] or (row.lost and bare[1].startswith(bare[0]))):
            return f"{bare[0][:60]!a} is learned, not {bare[1][:60]!a}"
    return ""


def _without_ends(text: str, base: LanguageBase) -> str:
    for end in base.end_marks:
        text = text.replace(end, "")
    return "".join(text.split())


def trained() -> Made:
    """Whole trainings of two steps on odd data: they end, and the adapter acts."""
    for name, lines in (
        ("one line", [PAIR]),
        ("all forms", [PAIR, ASKED, CHAT, BARE]),
        ("long lines", [{"text": "tin " * 5000}, PAIR]),
    ):
        yield f"texts: {name}", partial(_tuned, lines)


def _tuned(lines: Sequence[dict[str, Any]], place: Path) -> str:
    file, run = _made("\n".join(map(json.dumps, lines)).encode(), place), place / "run"
    words = ("--steps", "2", "--batch-size", "2", "--max-length", "64")
    fault = ran("tune", "causal-lm", "facts", file, "-o", run, *words, codes=(0,))
    return fault or ran("complete", "facts", "Hi", "--adapter", run, "--max-new-tokens", "3", codes=(0,))
