"""What reading, resizing, combining and inspecting adapter files costs: ``python -m benchmarks.files``.

Files are written for the shapes of public models, whose weights need not be there. Times are medians; loading is onto
a model on the meta device, so that nothing but the file is measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

import studio
from studio.families.shapes import outline
from studio.files.inspect import inspect
from studio.files.load import load
from studio.files.loose import Loose, write_loose
from studio.files.resize import resize

__all__ = ["main", "measure"]


def _written(model: Any, file: Path, rank: int, targets: str | tuple[str, ...]) -> int:
    """Writes a LoRA of random numbers in kohya's format, fp16; returns how many layers it has."""
    config = studio.LoRA(rank=rank, targets=targets)
    studio.attach(model, config, name="made")
    generator = torch.Generator().manual_seed(0)
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in studio.state(model, "made").items():
        path, _, part = key.rpartition(".")
        layers.setdefault(path, {})[part] = torch.randn(tensor.shape, generator=generator) * 0.02
    studio.detach(model)
    made = Loose(
        file=file, model=model, base="made", name="made", format="kohya", config=config, layers=layers, facts={}
    )
    write_loose(made, file, format="kohya", dtype="fp16")
    return len(layers)


def _median(call: Callable[[], object], rounds: int, after: Callable[[], object] = lambda: None) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
        after()
    return statistics.median(times)


def measure(folder: Path, rounds: int = 5) -> dict[str, float]:
    """Returns what each costs, in seconds.

    Args:
        folder: where the files go. rounds: of the median.
    """
    found: dict[str, float] = {}
    unet = outline("sdxl", ["unet"])
    kinds = (nn.Linear, nn.Conv2d)
    names = [path for path, module in unet.components["unet"].named_modules() if isinstance(module, kinds)]
    layers = tuple(f"re:unet\\.{name.replace('.', chr(92) + '.')}" for name in names)
    count = _written(unet, folder / "sdxl.safetensors", 4, layers)
    found["sites of the SDXL file"] = count

    def once() -> None:
        load(unet, folder / "sdxl.safetensors", name="dog")

    start = time.perf_counter()
    once()
    found["load SDXL, first time"] = time.perf_counter() - start
    studio.detach(unet)
    found["load SDXL, once in memory"] = _median(once, rounds, lambda: studio.detach(unet))
    _written(outline("flux-dev", ["transformer"]), folder / "flux.safetensors", 64, "attention+mlp")
    turn = iter(range(rounds))
    found["resize Flux, rank 64 to 16"] = _median(
        lambda: resize(folder / "flux.safetensors", folder / f"r{next(turn)}.safetensors", rank=16), 1
    )
    found |= _combined(folder)
    big = {f"lora_unet_layer_{n}.lora_down.weight": torch.zeros(4096, 4096, dtype=torch.float16) for n in range(32)}
    save_file(big, folder / "big.safetensors")
    found["inspect 1 GB"] = _median(lambda: inspect(folder / "big.safetensors"), rounds)
    return found


_COMBINE = """
import json, resource, sys, time
from studio.files import combine_files
from studio.families.shapes import outline
one, two, out = sys.argv[1:]
outline("flux-dev", ["transformer"])
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
combine_files({one: 0.7, two: 0.4}, out)
print(json.dumps([time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before]))
"""


def _combined(folder: Path) -> dict[str, float]:
    """Two Flux files of rank 16 as one of rank 32, in a process of its own: seconds, and what its memory grew by."""
    files = [folder / f"flux-{name}.safetensors" for name in ("one", "two", "both")]
    for file in files[:2]:
        _written(outline("flux-dev", ["transformer"]), file, 16, "attention+mlp")
    words = [sys.executable, "-c", _COMBINE, *map(str, files)]
    seconds, grown = json.loads(subprocess.run(words, capture_output=True, check=True, text=True).stdout)
    return {
        "combine two of Flux, rank 16, to one of rank 32": seconds,
        "and the memory for it, in MB": grown * 1024 / 1e6,
        "where the two files together have, in MB": sum(file.stat().st_size for file in files[:2]) / 1e6,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options.rounds)
    if options.json:
        print(json.dumps(found))
        return
    print("| what | seconds |\n|---|---|")
    for name, value in found.items():
        print(f"| {name} | {value:.3f} |" if isinstance(value, float) else f"| {name} | {value} |")


if __name__ == "__main__":
    main()
