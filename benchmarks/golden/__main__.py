"""The command line: makes a set, reads one, or compares two."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch

import studio
from benchmarks.golden.commands import make_commands
from benchmarks.golden.compare import compare, files_of
from benchmarks.golden.inputs import make_inputs
from benchmarks.golden.methods import make_methods
from benchmarks.golden.peft import make_peft
from benchmarks.golden.pictures import make_pictures
from benchmarks.golden.pipeline import make_pipeline
from benchmarks.golden.reading import inside, read_set
from benchmarks.golden.runs import make_language_runs, make_picture_runs

SECTIONS: Final[tuple[Callable[[], None], ...]] = (
    make_inputs,
    make_methods,
    make_pipeline,
    make_picture_runs,
    make_language_runs,
    make_pictures,
    make_peft,
    make_commands,
)
"""In this order: pictures are drawn with the adapters of the runs, and commands read what all others wrote."""


def make(out: Path) -> None:
    """Makes the set in a new folder; paths in it are relative, so that no text names the folder."""
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise SystemExit(f"{out} is not empty")
    print(f"golden set of {Path(studio.__file__).parent}")
    with inside(out):
        for section in SECTIONS:
            begin = time.perf_counter()
            section()
            print(f"{section.__name__}: {time.perf_counter() - begin:.0f} s", flush=True)
    read_set(out, out)
    print(f"{len(files_of(out))} files")


def main() -> None:
    """Makes, reads or compares."""
    parser = argparse.ArgumentParser("python -m benchmarks.golden", description="The bytes before and after a refactor")
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument("--compare", action="store_true", help="compare the folders OLD and NEW")
    parser.add_argument("--read", action="store_true", help="read the adapter files of OLD into OUT/read")
    asked = parser.parse_args()
    folders = [folder.resolve() for folder in asked.folders]
    if len(folders) != 1 + (asked.compare or asked.read):
        parser.error("give OUT; or --compare OLD NEW; or --read OLD OUT")
    if asked.compare:
        raise SystemExit(compare(*folders))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["STUDIO_CACHE"] = cache
        read_set(*folders) if asked.read else make(*folders)


if __name__ == "__main__":
    main()
