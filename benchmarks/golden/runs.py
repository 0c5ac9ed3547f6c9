"""Trainings of the embedded bases: pictures, an interrupted run, and every method and option on the language base."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from torch.optim.optimizer import register_optimizer_step_post_hook

import studio
from benchmarks.golden.inputs import DRAWINGS, FACTS, FORMS, PHOTOS, PROMPT
from benchmarks.golden.variants import VARIANTS, config_of
from studio.trainers import CausalLM, DreamBooth, Style, train

ROBOT: Final = Path("runs/emoji/robot/adapter.safetensors")
INK: Final = Path("runs/emoji/ink/adapter.safetensors")
LOOPS: Final[Mapping[str, tuple[Any, Mapping[str, Any]]]] = {
    **{f"{method}-loop": (config_of(method), {}) for method in VARIANTS},
    "adalora-pruned": (studio.AdaLoRA(rank=4, target_rank=2, full_steps=1, final_steps=1), {"steps": 8}),
    "lora-plus": (studio.LoRA(rank=2), {"optimizer": "lora-plus", "rate_ratio": 4.0}),
    "lora-fa": (studio.LoRA(rank=2), {"optimizer": "lora-fa"}),
    "grow": (studio.LoRA(rank=2), {"grow": {2: 4}}),
    "eva": (studio.LoRA(rank=2, init="eva"), {}),
    "bf16": (studio.LoRA(rank=2), {"precision": "bf16"}),
    "checkpointing": (studio.LoRA(rank=2, dropout=0.1), {"gradient_checkpointing": True}),
    "average": (studio.LoRA(rank=2), {"ema": 0.9, "accumulation": 2, "clip": 0.1, "weight_decay": 0.1}),
}
"""Short trainings of the embedded language base: every method, every way to train."""


def run(case: str, task: Any, **options: Any) -> None:
    """Trains in ``runs/case``; what tells the time is taken out of the log."""
    folder = Path("runs", case)
    made = train(task, output=folder, quiet=True, device="cpu", **options)
    log = folder / "log.jsonl"
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    kept = [{key: value for key, value in entry.items() if key not in ("seconds", "memory")} for entry in entries]
    log.write_text("".join(f"{json.dumps(entry)}\n" for entry in kept))
    (folder / "losses.txt").write_text(f"{made.losses}\n{dict(made.measures)}\n")


def make_picture_runs() -> None:
    """DreamBooth and style trainings on the embedded base."""
    robot: dict[str, Any] = {"base": "emoji", "instance_images": PHOTOS, "instance_prompt": PROMPT}
    robot["class_prompt"] = "a photo of robot"
    run("emoji/robot", DreamBooth(**robot), adapter=studio.LoRA(rank=4), steps=40, checkpoint_every=20)
    run("emoji/ink", Style(base="emoji", images=DRAWINGS, trigger="ink style"), adapter=studio.DoRA(rank=4), steps=10)
    prior = DreamBooth(**robot, prior="generate", class_count=2, preview_prompts=())
    run("emoji/prior", prior, adapter=studio.LoKr(rank=4), steps=3)
    make_interrupted_run(DreamBooth(**robot, prior="self", text_encoder=True, preview_prompts=(), flip=True))


def make_interrupted_run(task: DreamBooth) -> None:
    """One run that nobody touches, and the same one interrupted and taken up again."""
    options: dict[str, Any] = {
        "adapter": studio.LoRA(rank=2, dropout=0.3),
        "steps": 6,
        "batch_size": 2,
        "checkpoint_every": 2,
        "ema": 0.5,
        "warmup": 2,
        "schedule": "cosine",
    }
    run("emoji/whole", task, **options)
    with interrupted_at(3):
        run("emoji/resumed", task, **options)
    interrupted = Path("runs/emoji/interrupted")
    shutil.copytree("runs/emoji/resumed", interrupted)
    (interrupted / "log.jsonl").unlink()  # it tells the time
    for state in interrupted.rglob("*.state"):
        state.unlink()  # no public format
    run("emoji/resumed", task, **options)


@contextlib.contextmanager
def interrupted_at(step: int) -> Iterator[None]:
    """Presses Ctrl-C in the middle of an optimizer step, and expects the run to end with it."""
    steps = iter(range(1, step + 1))

    def press(*_: object) -> None:
        if next(steps, 0) == step:
            signal.raise_signal(signal.SIGINT)

    handle = register_optimizer_step_post_hook(press)
    try:
        yield
    except KeyboardInterrupt:
        return
    finally:
        handle.remove()
    raise SystemExit("the run was interrupted and went on")


def make_language_runs() -> None:
    """A training with answers and measures, and the short ones."""
    task = CausalLM(base="facts", data=FACTS, held_out=0.1, answers=5)
    run("facts/lora", task, adapter=studio.LoRA(rank=4), steps=20)
    task = CausalLM(base="facts", data=FORMS, preview_tokens=4, name="forms")
    run("facts/forms", task, adapter=studio.LoRA(rank=2, targets="all-linear"), steps=3, batch_size=2, preview_every=1)
    for case, (adapter, options) in LOOPS.items():
        task = CausalLM(base="facts", data=FACTS, preview_prompts=(), max_length=64)
        run(f"facts/{case}", task, adapter=adapter, **{"steps": 4, "batch_size": 2, **options})
