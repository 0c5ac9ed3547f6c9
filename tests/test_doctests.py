"""Every example in a docstring runs, and says what it says there."""

from __future__ import annotations

import doctest
import importlib

import pytest

from product import SOURCES

NAMES = [name for name, file in SOURCES.items() if ">>> " in file.read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", [*NAMES, "arrows", "ratchet"])
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what an example writes, it writes here
    module = importlib.import_module(name)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testmod(module, optionflags=flags, report=True)
    assert result.attempted > 0 and result.failed == 0
