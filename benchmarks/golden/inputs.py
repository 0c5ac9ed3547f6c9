"""What is learned from: pictures and questions out of the package, and some with faults."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Final

import studio

PHOTOS: Final = Path("inputs/photos")
DRAWINGS: Final = Path("inputs/drawings")
FACTS: Final = Path("inputs/facts.jsonl")
FORMS: Final = Path("inputs/forms.jsonl")
SETTINGS: Final = Path("inputs/settings.toml")
FAULTY: Final = Path("inputs/faulty")
PROMPT: Final = "a photo of sks robot"
OTHER_FORMS: Final = (
    {"instruction": "Translate.", "input": "un chat", "output": "a cat", "id": 7},
    {"prompt": "1 + 1 =", "completion": " 2"},
    {"text": "Water is wet."},
)
"""The forms of a text that the packaged questions do not have."""


def packaged(name: str) -> Path:
    """Returns a folder or file of the package's data, wherever it stands in it."""
    home = Path(studio.__file__).resolve().parent
    found = sorted(home.rglob(name)) or sorted(home.parent.rglob(name))
    if not found:
        raise SystemExit(f"no {name} in {home}")
    return found[0]


def make_inputs() -> None:
    """Writes what the trainings learn from and what the commands check."""
    shutil.copytree(packaged("instances/robot"), PHOTOS)
    shutil.copytree(packaged("style/twemoji"), DRAWINGS)
    lines = packaged("facts/train.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    FACTS.write_text("".join(lines[:200]), encoding="utf-8")
    FORMS.write_text("".join(f"{json.dumps(entry)}\n" for entry in OTHER_FORMS), encoding="utf-8")
    SETTINGS.write_text('method = "dora"\nrank = 2\nsteps = 2\npreview_prompts = []\n', encoding="utf-8")
    shutil.copytree(PHOTOS, FAULTY)
    shutil.copyfile(PHOTOS / "01.png", FAULTY / "again.png")
    (FAULTY / "02.txt").write_text("a photo of something", encoding="utf-8")
    (FAULTY / "broken.png").write_bytes((PHOTOS / "03.png").read_bytes()[:100])
    (FAULTY / "lonely.txt").write_text("a caption of nothing", encoding="utf-8")
