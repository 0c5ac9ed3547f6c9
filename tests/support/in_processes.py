"""What a process of ``test_group.py`` and ``test_zero.py`` does: trains several models, each in several ways."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from studio import DoRA, LoRA
from studio.errors import DoesNotFit
from studio.families import open_base
from studio.launched import started_processes
from studio.trainers import CausalLM, DreamBooth, train
from studio.trainers.loop.group import joined

__all__ = ["SETTINGS", "WAYS", "tasks", "train_all", "train_much"]

SETTINGS: dict[str, Any] = {
    "steps": 3, "batch_size": 4, "seed": 3, "warmup": 0, "preview_every": 0, "quiet": True, "checkpoint_every": 2
}  # fmt: skip
LEARN: dict[str, Any] = {"adapter": LoRA(rank=2, targets="attention"), "learning_rate": 1e-3}
WAYS: dict[str, dict[str, dict[str, Any]]] = {
    "usual": {"whole": {"sharding": "none"}, "parts": {"sharding": "full"}},
    "zero": {
        "zero2": {"sharding": "zero2"},
        "zero2-offload": {"sharding": "zero2", "offload": "optimizer"},
        "zero3": {"sharding": "zero3"},
        "zero3-offload": {"sharding": "zero3", "offload": "all"},
    },
}
"""What is started -> the name of a way -> what it sets."""


def tasks(folder: Path) -> dict[str, Any]:
    """A UNet, a transformer of pictures and words, and a language model, of the bases in a folder."""
    shown: dict[str, Any] = {"instance_images": folder / "photos", "instance_prompt": "a photo of sks thing",
                             "resolution": 64, "preview_steps": 2}  # fmt: skip
    return {
        "unet": DreamBooth(base=folder / "unet", class_prompt="a thing", prior="self", prior_rows=2, **shown),
        "mmdit": DreamBooth(base=folder / "mmdit", prior="none", **shown),
        "llama": CausalLM(base=folder / "llama", data=folder / "texts.jsonl"),
    }


def train_all(folder: Path, out: Path, ways: dict[str, dict[str, Any]]) -> None:
    """Trains every task in every way: name of the way -> what it sets."""
    for name, task in tasks(folder).items():
        for way, own in ways.items():
            train(task, output=out / f"{name}-{way}", cache=str(folder / "cache"), **{**LEARN, **SETTINGS, **own})


def refused(folder: Path, out: Path) -> None:
    """Starts a training with a seed of each process's own, and writes down what is said."""
    rank, _ = started_processes()
    try:
        train(
            tasks(folder)["unet"],
            output=out / "odd",
            cache=str(folder / "cache"),
            **{**LEARN, **SETTINGS, "seed": rank},
        )
    except DoesNotFit as error:
        (out / f"odd-{rank}.txt").write_text(str(error))


def train_much(folder: Path, out: Path, ways: dict[str, dict[str, Any]]) -> None:
    """Trains with much that the steps have to do with at once: two rates and more, growth, an average, ..."""
    task = dataclasses.replace(tasks(folder)["unet"], text_encoder=True)
    much = {"optimizer": "lora-plus", "accumulation": 2, "batch_size": 2, "ema": 0.5, "grow": {2: 4}, "clip": 1e-3,
            "steps": 4, "gradient_checkpointing": True, "adapter": DoRA(rank=2)}  # fmt: skip
    for way, own in ways.items():
        train(task, output=out / f"much-{way}", cache=str(folder / "cache"), **{**LEARN, **SETTINGS, **much, **own})


def held(folder: Path, out: Path) -> None:
    """Writes down how many of a base's numbers a process holds after a training under ZeRO-3."""
    base = open_base(folder / "unet")
    unet = base.pipe.unet
    numbers = sum(parameter.numel() for parameter in unet.parameters())
    task = dataclasses.replace(tasks(folder)["unet"], base=base)
    train(task, output=out / "held", cache=str(folder / "cache"), **{**LEARN, **SETTINGS, **WAYS["zero"]["zero3"]})
    weights: list[Any] = [p for name, p in unet.named_parameters() if ".adapters." not in name]
    found = {"numbers": numbers, "own": sum(p.ds_tensor.numel() for p in weights),
             "there": sum(p.numel() for p in weights)}  # fmt: skip
    (out / f"held-{started_processes()[0]}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    bases, runs, asked = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    train_all(bases, runs, WAYS[asked])
    if asked == "usual":
        refused(bases, runs)
    else:
        train_much(bases, runs, WAYS[asked])
        held(bases, runs)
    joined().wait()  # none leaves while another one is still at work
    sys.stderr.flush()
    os._exit(0)  # what torch's threads do while an interpreter is taken down is not what is tested
