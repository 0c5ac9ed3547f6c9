"""Every example in a docstring runs, and says what it says there."""

from __future__ import annotations

import doctest
import importlib
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def modules() -> list[str]:
    found = []
    for folder in ("studio", "trainers", "pipelines", "datasets"):
        package = folder if folder == "studio" else f"studio.{folder}"
        for place, _, names in os.walk(ROOT / folder):
            for name in names:
                file = Path(place, name)
                if file.suffix == ".py" and ">>> " in file.read_text(encoding="utf-8"):
                    parts = file.relative_to(ROOT / folder).with_suffix("").parts
                    found.append(".".join([package, *(part for part in parts if part != "__init__")]))
    return sorted(found)


@pytest.mark.parametrize("name", modules())
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what an example writes, it writes here
    module = importlib.import_module(name)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testmod(module, optionflags=flags, report=True)
    assert result.attempted > 0 and result.failed == 0
