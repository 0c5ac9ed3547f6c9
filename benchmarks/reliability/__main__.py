"""``python -m benchmarks.reliability [ATTACK ...] [--short]``: runs the attacks and writes docs/reliability.md."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Final

import benchmarks.reliability as package
from benchmarks.reliability.trial import CPU, MEMORY, Trial

PAGE: Final = Path(__file__).parents[2] / "docs" / "reliability.md"
HEAD: Final = f"""# Reliability

What the studio was attacked with, and how it ended; made by `python -m benchmarks.reliability`. Its short form runs
with the tests. A trial is a *fault* when it ends in anything but the right result or one sentence that refuses
it: a traceback, {CPU:.0f} s of processor time, more than {MEMORY / 1e9:.1f} GB of memory, or a wrong result in
silence.

| attack | trials | faults | processor seconds, all | the longest | most memory |
|---|---|---|---|---|---|
"""


def attacks() -> Iterator[ModuleType]:
    """All modules of this package that are attacks, by name."""
    for found in sorted(pkgutil.iter_modules(package.__path__), key=lambda found: found.name):
        if not found.name.startswith("_"):
            module = importlib.import_module(f"{package.__name__}.{found.name}")
            if hasattr(module, "trials"):
                yield module


def row(title: str, trials: list[Trial]) -> str:
    """A row of the table."""
    faults = sum(bool(trial.fault) for trial in trials)
    seconds, longest = sum(trial.seconds for trial in trials), max(trial.seconds for trial in trials)
    memory = max(trial.memory for trial in trials)
    return f"| {title} | {len(trials):,} | {faults} | {seconds:,.0f} | {longest:.1f} | {memory / 1e9:.2f} GB |"


def write(rows: dict[str, str]) -> None:
    """Writes the page; the rows of attacks that were not run stay as they were."""
    lines = PAGE.read_text(encoding="utf-8").splitlines() if PAGE.exists() else []
    known = {line.split("|")[1].strip(): line for line in lines if line.startswith("| ")}
    known.pop("attack", None)
    known |= rows
    PAGE.write_text(HEAD + "".join(f"{known[title]}\n" for title in sorted(known)), encoding="utf-8")


def main() -> int:
    """Runs the attacks that were asked for, or all; returns 1 where there was a fault."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability")
    parser.add_argument("attacks", nargs="*", help="modules of benchmarks/reliability; none: all")
    parser.add_argument("--short", action="store_true", help="the form that runs with the tests; writes no page")
    asked = parser.parse_args()
    rows: dict[str, str] = {}
    bad = False
    for module in attacks():
        name = module.__name__.rpartition(".")[2]
        if asked.attacks and name not in asked.attacks:
            continue
        with tempfile.TemporaryDirectory() as folder:
            trials = []
            for trial in module.trials(Path(folder), not asked.short):
                trials.append(trial)
                if trial.fault:
                    bad = True
                    print(f"FAULT {name}: {trial.name}: {trial.fault}", flush=True)
        rows[module.TITLE] = row(module.TITLE, trials)
        print(rows[module.TITLE], flush=True)
    if not asked.short:
        write(rows)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
