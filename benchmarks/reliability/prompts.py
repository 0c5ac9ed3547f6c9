"""Attack: prompts and what else is asked for with them, on the command line and in Python."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import torch

import studio
from benchmarks.reliability._asked import EQUAL, TAGS, TEXTS, WORDS, WRITTEN, WRONG, WRONG_TAGS
from benchmarks.reliability._folders import LINKS
from benchmarks.reliability._terminal import ran, refusal
from benchmarks.reliability._written import TOLD
from benchmarks.reliability.trial import Trial, attempt
from studio.pipelines import ImagePipeline, TextPipeline, parse_prompt, read_metadata, save_png
from studio.pipelines.remarks import Remark

__all__ = ["TITLE", "trials"]

TITLE: Final = "prompts and what is asked with them"
Made = Iterator[tuple[str, Callable[[Path], str]]]
FEW: Final[dict[str, Any]] = {"steps": 1, "seeds": (0,), "width": 32, "height": 32, "guidance": 1.0}
SMALL: Final = ("--steps", "1", "--resolution", "32")
DRAW: Final = ("generate", "emoji", "tiger", *SMALL)


def trials(folder: Path, long: bool) -> Iterator[Trial]:
    """Asks for one thing after the other.

    Args:
        folder: where pictures go. long: all of them.
    """
    number = 0
    for group in (tags, equal, wrong, texts, written, on_the_command_line, outputs):
        for turn, (name, action) in enumerate(group()):
            number += 1
            if long or turn % 7 == 0:
                yield attempt(f"{group.__name__}: {name}", partial(action, folder / f"{number:04}"))


@cache
def images() -> ImagePipeline:
    """The embedded base with two adapters that act, both off."""
    pipe = ImagePipeline.open("emoji")
    _adapt(pipe.pipe)
    return pipe


@cache
def language() -> TextPipeline:
    """The embedded language base with two adapters that act, both off."""
    pipe = TextPipeline.open("facts")
    _adapt(pipe.model)
    return pipe


def _adapt(model: Any) -> None:
    for seed, name in enumerate(("dog", "ink")):
        studio.attach(model, studio.LoRA(rank=2), name=name, seed=seed)
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for tensor in studio.state(model, name).values():
                tensor.add_(0.2 * torch.randn(tensor.shape, generator=draw)).requires_grad_(False)
    studio.blend(model, {})


def tags() -> Made:
    """Prompts with tags: what the encoder reads and which adapters act, or a refusal."""
    for prompt, text, blend in TAGS:
        yield f"{prompt[:40]!a}", partial(_parsed, prompt, text, blend)
    for prompt in WRONG_TAGS:
        yield f"refused: {prompt[:40]!a}", partial(_refused, lambda prompt=prompt: parse_prompt(prompt, ["dog", "ink"]))


def _parsed(prompt: str, text: str, blend: Any, place: Path) -> str:
    found = parse_prompt(prompt, ["dog", "ink"])
    return "" if (found.text, found.blend) == (text, blend) else f"{found}"


def _refused(action: Callable[[], Any], place: Path) -> str:
    result = action()
    return f"it is taken: {str(result)[:100]!a}"


def _drawn(**options: Any) -> list[bytes]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Remark)
        guidance = {"guidance": 2.0} if "negative" in options else {}  # with 1 it is not even read
        made = images().generate(**{"prompt": "tiger", **FEW, **guidance, **options})
    standing = {name: info.strength for name, info in images().adapters.items() if info.strength != 0}
    if standing:
        raise RuntimeError(f"the standing blend is {standing} afterwards")
    return [picture.tobytes() for picture in made]


def equal() -> Made:
    """What is said in two ways gives the same pictures."""
    for name, (one, other) in EQUAL.items():
        yield name, partial(_same, one, other)


def _same(one: dict[str, Any], other: dict[str, Any], place: Path) -> str:
    try:
        made = _drawn(**{name: value() if callable(value) else value for name, value in one.items()})
    except studio.StudioError as error:
        return f"it is refused: {error}"
    return "" if made == _drawn(**other) else f"{len(made)} other pictures are drawn"


def wrong() -> Made:
    """Arguments that no picture can be made of."""
    for name, values in WRONG.items():
        for value in values:
            yield f"{name}={str(value)[:30]!a}", partial(_refused, partial(_drawn, **{name: value}))


def texts() -> Made:
    """Prompts of every sort; each is drawn or refused, and nothing of it reaches a terminal raw."""
    for name, prompt in TEXTS.items():
        yield f"drawn: {name}", partial(_any, prompt)
        yield f"completed: {name}", partial(_completed, prompt)


def _any(prompt: str, place: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Remark)
        (picture,) = images().generate(prompt, **FEW)
    file = save_png(picture, place.with_suffix(".png"))
    again = read_metadata(file)["prompt"]
    return "" if again == prompt else f"the picture says {again[:50]!a}"


def _completed(prompt: str, place: Path) -> str:
    (made,) = language().complete(prompt, max_new_tokens=2)
    return "" if made.tokens <= 2 else f"{made}"


def written() -> Made:
    """What is asked of a language model, wrong in one thing."""
    for name, values in WRITTEN.items():
        for value in values:
            yield f"{name}={str(value)[:30]!a}", partial(_refused, partial(_said, **{name: value}))


def _said(**options: Any) -> Any:
    return language().complete(**{"prompt": "Hi", "max_new_tokens": 2, **options})


def on_the_command_line() -> Made:
    """Words on the command line, each refused before a base is opened, or heeded."""
    for command, words, says in WORDS:
        yield f"{command} {' '.join(words)[:60]!a}", partial(_told, command, words, says)


def _told(command: str, words: tuple[str, ...], says: str | None, place: Path) -> str:
    place.mkdir(parents=True)
    base = {"generate": ("emoji", "-o", place / "out", *SMALL), "complete": ("facts", "--max-new-tokens", "2")}
    line = (command, *base[command], *words)
    if says is None:
        return ran(*line, codes=(0,))
    fault = refusal(*line, says=says)
    return fault or ("a folder is left behind" if (place / "out").exists() else "")


def outputs() -> Made:
    """Folders and files where pictures and sheets go."""
    for kind, make in {
        **LINKS,
        "a file": lambda place: place.write_bytes(b"x"),
        "a device": lambda place: place.symlink_to("/dev/null"),
        "of the system": lambda place: place.symlink_to("/proc"),
    }.items():
        yield f"the folder is {kind}", partial(_into, make)
        yield f"the sheet is {kind}", partial(_sheet, make)
    for name in ("a/b/c", "with blank", "-x", "caf\udce9", TOLD, "a" * 255, "0000.png", "[red]"):
        yield f"the folder is called {name[:20]!a}", partial(_called, name)
    for name in ("a" * 256, "/proc/x", "/dev/null/x", "/sys/x"):
        yield f"the folder cannot be called {name[:20]!a}", partial(_not_called, name)
    for name in ("9999.png", "0000.png", "000000000000000000000009.png", "٣.png", "-1.png", "1e3.png"):
        yield f"{name!a} is there already", partial(_beside, name)
    for name in ("sheet.jpg", "sheet", "a/sheet.png", "SHEET.PNG", "0000.png"):
        yield f"the sheet is {name}", partial(_sheet_called, name)


def _into(make: Callable[[Path], Any], place: Path) -> str:
    place.parent.mkdir(parents=True, exist_ok=True)
    make(place)
    return refusal(*DRAW, "-o", place)


def _sheet(make: Callable[[Path], Any], place: Path) -> str:
    place.mkdir(parents=True)
    make(place / "sheet.png")
    return refusal(*DRAW, "-o", place / "out", "--grid", place / "sheet.png")


def _called(name: str, place: Path) -> str:
    place.mkdir(parents=True)
    fault = ran(*DRAW, "-o", place / name, "--json", codes=(0,))
    return fault or ("" if (place / name / "0000.png").is_file() else "there is no picture")


def _not_called(name: str, place: Path) -> str:
    return refusal(*DRAW, "-o", place / name)


def _beside(name: str, place: Path) -> str:
    place.mkdir(parents=True)
    (place / name).write_bytes(b"mine")
    fault = ran(*DRAW, "-o", place)
    return fault or ("" if (place / name).read_bytes() == b"mine" else "it is written over")


def _sheet_called(name: str, place: Path) -> str:
    words = (*DRAW, "--seeds", "0..2", "-o", place)
    fault = ran(*words, "--grid", place / name)
    made = sorted(file.name for file in place.glob("[0-9]*.png")) if place.exists() else []
    there = (place / name).is_file()
    return fault or ("" if not there or len(made) >= 3 else f"{made} are there of three pictures and a sheet")
