"""Adapters on a whole diffusers pipeline, in every format, and their strengths by component."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import studio
from benchmarks.golden.adapters import FORMATS, save, shake
from benchmarks.golden.record import REFUSED, Record
from benchmarks.golden.subjects import SUBJECTS, Subject

PIPELINE: Final[Mapping[str, Any]] = {
    "lora": studio.LoRA(rank=2, alpha=3.0, targets="attention"),
    "lora-both": studio.LoRA(rank=4, alpha_pattern={"q_proj": 2.0}, targets=("to_q", "to_v", "q_proj", "fc1")),
    "lora-all": studio.LoRA(rank=4, rank_pattern={"to_k": 2}, targets="all-linear"),
    "lora-conv": studio.LoRA(rank=2, targets="conv"),
    "dora": studio.DoRA(rank=2, targets="attention+mlp"),
    "ia3": studio.IA3(targets=("to_k", "to_v", "ff.net.2"), feedforward=("ff.net.2",)),
    "loha": studio.LoHa(rank=2, targets="style"),
    "lokr": studio.LoKr(rank=2, targets="subject"),
    "oft": studio.OFT(block_size=4, outputs=True, targets="attention"),
    "norms": studio.LNTuning(targets="norms"),
}
"""Case -> what is attached to the whole pipeline: by the family's presets, and with components in the names."""
PARTS: Final[tuple[Mapping[str, Any], ...]] = ({"unet": 0.6}, {"unet": 0.6, "text_encoder": 0.3})
"""What is blended at other strengths than the rest."""


def make_pipeline() -> None:
    """Adapters on a diffusers pipeline in every format, and strengths by component."""
    for name, config in PIPELINE.items():
        record = Record(Path("pipeline/emoji", name))
        make_case(record, SUBJECTS["emoji"], config)
        record.write()


def make_case(record: Record, subject: Subject, config: Any) -> None:
    """One config: the pipeline's output, two blends, and its files."""
    pipe = subject.make()
    report = record.attempt("attach", studio.attach, pipe, config)
    if report is REFUSED:
        return
    record.say("attached", f"{report.sites} {report.parameters} {studio.trainable(pipe)}")
    shake(studio.state(pipe).values())
    record.attempt_output("live", subject.output, pipe)
    for parts in PARTS:
        strength = studio.Strength(0.5, **parts)
        if record.attempt(f"blend {parts}", studio.blend, pipe, {"default": strength}) is not REFUSED:
            record.attempt_output(f"blend {parts}", subject.output, pipe)
    for format in FORMATS:
        save(record, subject, config, format)
