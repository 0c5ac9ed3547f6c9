"""Settings from TOML files, ``--set`` and options: each acts, or is refused by its name before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from PIL import Image

from benchmarks.reliability._folders import LINKS
from benchmarks.reliability._pictures import encoded, plain
from benchmarks.reliability._terminal import ran, refusal
from benchmarks.reliability._written import OPTIONS, RIGHT_SETTINGS, SETS, WRONG_SETTINGS
from studio.commands.settings import gather
from studio.trainers import DreamBooth

__all__ = ["files", "trained"]

Made = Iterator[tuple[str, Callable[[Path], str]]]
PROMPT: Final = "a photo of sks dog"


def files() -> Made:
    """Files of settings that are right, wrong, and no settings at all; the same on the command line."""
    for name, text, field, wanted in RIGHT_SETTINGS:
        yield name, partial(_acts, text, field, wanted)
    for text, says in WRONG_SETTINGS:
        yield f"refused: {text[:40]!a}", partial(_refused, text.encode(), says)
    for name, data in (
        ("Windows-1252", "x = 'é'".encode("cp1252")),
        ("UTF-16", "steps = 7".encode("utf-16")),
        ("a picture", plain()),
        ("a picture's end", plain()[20:]),
        ("JSON", b'{"steps": 7}'),
        ("YAML", b"steps: 7\n"),
        ("nothing but spaces, 5 MB", b" " * 5_000_000),
    ):
        yield f"refused: {name}", partial(_refused, data, "settings.toml")
    for kind, make in {**LINKS, "folder": Path.mkdir, "nothing": None}.items():
        yield f"refused: a {kind}", partial(_refused, make, "settings.toml")
    for word, says in SETS:
        yield f"--set {word[:40]!a}", partial(_refused, b"", says, words=("--set", word))
    for option, value in OPTIONS:
        yield f"{option} {value[:20]!a}", partial(_refused, b"", "", words=(option, value))


def _acts(text: str, field: str, wanted: Any, place: Path) -> str:
    place.mkdir(parents=True)
    file = place / "settings.toml"
    file.write_bytes(text.encode())
    got = getattr(gather(DreamBooth, config=file, options={}, words=()).make_plan(), field)
    return "" if got == wanted and type(got) is type(wanted) else f"{field} is {got!r}"


def _refused(content: Any, says: str, place: Path, words: tuple[str, ...] = ()) -> str:
    photos, file, run = place / "photos", place / "settings.toml", place / "run"
    photos.mkdir(parents=True)
    (photos / "a.png").write_bytes(plain())
    if callable(content):
        content(file)
    elif content is not None:
        file.write_bytes(content)
    words = words or ("--config", str(file))
    given = {"--instance-prompt": PROMPT, "--steps": "1"}
    if words[0] in ("--config", "--set"):  # an option would win over what they say of the steps
        del given["--steps"]
    given |= {words[0]: words[1]}
    line = [part for option in given.items() for part in option]
    fault = refusal("dreambooth", "emoji", photos, "-o", run, *line, says=says)
    return fault or ("its run is left behind" if run.exists() else "")


def trained() -> Made:
    """Whole trainings of one step on folders that are odd and right."""
    for name, size in (("mixed sizes", (300, 20)), ("tiny ones", (16, 16)), ("large ones", (4000, 4000))):
        yield f"pictures: {name}", partial(_trained, size)


def _trained(size: tuple[int, int], place: Path) -> str:
    photos, run = place / "10_sks dog", place / "run"
    photos.mkdir(parents=True)
    (photos / "a.png").write_bytes(encoded(Image.effect_noise(size, 50)))
    (photos / "b.jpg").write_bytes(encoded(Image.effect_noise((64, 64), 50), "JPEG"))
    words = ("--instance-prompt", PROMPT, "--steps", "1", "--batch-size", "1", "--set", "preview_prompts=[]")
    fault = ran("dreambooth", "emoji", photos, "-o", run, *words, codes=(0,))
    return fault or ("" if (run / "adapter.safetensors").is_file() else "there is no adapter")
