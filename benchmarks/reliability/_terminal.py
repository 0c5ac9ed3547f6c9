"""A command of the studio in this process, and what is wrong with how it ended."""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from click.testing import CliRunner

from studio.cli import main

__all__ = ["HOSTILE", "ran", "refusal"]

HOSTILE: Final = "\x1b]0;x\x07\x1b[2J\x00\x9b\r\u202e\u2028"
"""Characters that a terminal acts on, as they come from names and files."""
_RAW: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_STYLE: Final = re.compile(r"\x1b\[(31m|1m|33m|0m|36m)")


def ran(*words: str | Path, codes: Sequence[int] = (0, 1, 2, 3), says: str = "", speaks: bool = True) -> str:
    """Runs a command; returns what is wrong with its end, ``""`` if nothing.

    Args:
        words: the command line behind ``studio``.
        codes: the exit codes that are right.
        says: what the sentence of a refusal must name.
        speaks: whether a refusal is one sentence on stderr (else it is the report itself, as with ``check``).
    """
    result = CliRunner().invoke(main, [str(word) for word in words], color=True)
    error = result.exception
    if error is not None and not isinstance(error, SystemExit):
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"traceback: {type(error).__name__}: {str(error)[:100]!a} ({Path(place.filename).name}:{place.lineno})"
    plain = _STYLE.sub("", result.output)
    raw = _RAW.search(plain)
    if raw:
        return f"{raw[0]!a} reaches the terminal: {plain[max(0, raw.start() - 40) : raw.end() + 10]!a}"
    if result.exit_code not in codes:
        return f"it ended with {result.exit_code}: {plain[-200:]!a}"
    if "--json" in words and result.exit_code == 0:
        json.loads(result.stdout)
    return _sentence(_STYLE.sub("", result.stderr), says) if result.exit_code and speaks else ""


def refusal(*words: str | Path, says: str = "") -> str:
    """As :func:`ran`, where the command must be refused."""
    return ran(*words, codes=(2, 3), says=says)


def _sentence(stderr: str, says: str) -> str:
    lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
    if len(lines) != 1:
        return f"it is refused in {len(lines)} sentences: {stderr[-200:]!a}"
    if len(lines[0]) > 1_250:
        return f"the sentence has {len(lines[0]):,} characters: {lines[0][:100]!a}..."
    return "" if says.lower() in lines[0].lower() else f"the sentence does not name {says!a}: {lines[0][:200]!a}"
