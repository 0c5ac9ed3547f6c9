"""Bases that do not fit, tuned where they do: ``python -m benchmarks.big [llama|sdxl] [--folder DIR]``.

Two bases of real size with random weights, written in shards: a Llama of 6.7 billion parameters (13.5 GB in bf16) in 12
GB, and a pipeline of Stable Diffusion XL's shape (7.1 GB) at 512 x 512 pixels in 8 GB. Each is opened in NF4 and tuned
for three steps with LoRA and gradient checkpointing, in a process of its own; its peak, of which all counts, stands
beside the forecast of ``studio plan`` for the same settings, which counts tensors. bitsandbytes and Linux are needed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.large_bases import write_llama, write_sdxl
from benchmarks.resident import Resident, status

__all__ = ["ROWS", "Row", "main"]

STEPS, RANK = 3, 16
SETTINGS: dict[str, Any] = {"batch_size": 1, "gradient_checkpointing": True, "precision": "bf16"}
"""Of the training and of the plan."""


@dataclass(frozen=True)
class Row:
    """One base and how it is tuned.

    Attributes:
        title: what it is. limit: bytes that the whole process may hold. write: writes the base into a folder.
        task: (folder, place for what is trained on) -> the task. asked: what the plan is asked beside the settings.
    """

    title: str
    limit: float
    write: Callable[[Path], int]
    task: Callable[[Path, Path], Any]
    asked: dict[str, Any]


def texts(folder: Path, place: Path) -> Any:
    """Texts longer than what is read of them."""
    from studio.trainers import CausalLM

    line = {"prompt": "Tell me of a long day. ", "completion": "It began early and went on and on. " * 12}
    data = place / "samples.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for _ in range(8)))
    return CausalLM(base=folder, data=data, quantize="nf4", preview_prompts=(), max_length=128)


def pictures(folder: Path, place: Path) -> Any:
    """Four pictures of noise."""
    import torch
    from PIL import Image

    from studio.trainers import DreamBooth

    photos = place / "photos"
    photos.mkdir()
    for number in range(4):
        pixels = torch.randint(0, 256, (512, 512, 3), generator=torch.Generator().manual_seed(number))
        Image.fromarray(pixels.byte().numpy()).save(photos / f"{number}.png")
    return DreamBooth(
        base=folder, instance_images=photos, instance_prompt="a photo of sks dog", prior="none", resolution=512,
        quantize="nf4", preview_prompts=(),
    )  # fmt: skip


ROWS = {
    "llama": Row("6.7 billion parameters as Llama 2's, 128 tokens", 12e9, write_llama, texts, {"length": 128}),
    "sdxl": Row(
        "Stable Diffusion XL's shape, 512 x 512", 8e9, write_sdxl, pictures, {"resolution": 512, "prior": "none"}
    ),
}


def tune(row: Row, folder: Path, place: Path) -> dict[str, Any]:
    """Tunes a base; returns the losses, seconds, and what this process held."""
    import studio
    from studio.trainers import train

    libraries = status()["VmRSS"]
    begin = time.perf_counter()
    with Resident() as resident:
        run = train(
            row.task(folder, place), adapter=studio.LoRA(rank=RANK, targets="attention"), output=place / "run",
            steps=STEPS, learning_rate=1e-4, warmup=0, preview_every=0, **SETTINGS,
        )  # fmt: skip
    seconds = time.perf_counter() - begin
    held = {"peak": resident.peak, "own": resident.own, "files": resident.files, "libraries": libraries}
    return {"losses": run.losses, "seconds": seconds, **held}


def forecast(row: Row, folder: Path) -> float:
    """The bytes that ``studio plan`` expects for the same settings."""
    import studio
    from studio.trainers.forecast import plan

    adapter = studio.LoRA(rank=RANK, targets="attention")
    return float(plan(folder, adapter=adapter, quantize="nf4", previews=False, **row.asked, **SETTINGS).peak)


def measure(name: str, folder: Path) -> bool:
    """Tunes a base in a fresh process and prints what that took; returns whether it stayed within its limit."""
    row = ROWS[name]
    print(row.title)
    if not any(folder.glob("*.json")):
        print(f"  {row.write(folder) / 1e9:.1f} GB of weights written")
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "benchmarks.big", name, "--folder", str(folder), "--tune", place]
        own = os.environ | {"STUDIO_CACHE": str(Path(place, "cache"))}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=own)
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"  losses {', '.join(f'{loss:.3f}' for loss in found['losses'])} in {found['seconds']:.0f} s")
    print(f"  peak of the process {found['peak'] / 1e9:.2f} GB (limit {row.limit / 1e9:.0f} GB)")
    print(f"  of its own at most {found['own'] / 1e9:.2f} GB, of mapped files at most {found['files'] / 1e9:.2f} GB")
    print(f"  forecast of the tensors {forecast(row, folder) / 1e9:.2f} GB; Python and libraries "
          f"{found['libraries'] / 1e9:.2f} GB")  # fmt: skip
    return bool(found["peak"] <= row.limit)


def main() -> int:
    """Prints the figures; returns 1 where a process took more than its limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", nargs="?", choices=list(ROWS), help="one of them alone")
    parser.add_argument("--folder", type=Path, help="where that base is, or shall be kept; else it is removed again")
    parser.add_argument("--tune", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.folder is not None and asked.base is None:
        parser.error("--folder is of one base: say which")
    if asked.tune:
        print(json.dumps(tune(ROWS[asked.base], asked.folder, asked.tune)))
        return 0
    fits = True
    for name in [asked.base] if asked.base else ROWS:
        folder = asked.folder or Path(tempfile.mkdtemp(prefix="big-"))
        try:
            fits &= measure(name, folder)
        finally:
            if asked.folder is None:
                shutil.rmtree(folder)
    return int(not fits)


if __name__ == "__main__":
    sys.exit(main())
