"""Every method on every kind of layer: outputs, training, blends, growing, and files in every format."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

import studio
from benchmarks.golden.adapters import FORMATS, attach, place_of, save, shake
from benchmarks.golden.models import two_linears
from benchmarks.golden.record import REFUSED, Record, digest, file_digest
from benchmarks.golden.subjects import SUBJECTS, Subject
from benchmarks.golden.variants import cases, config_of, first_variant

BLENDS: Final[Mapping[str, Mapping[str, Any]]] = {
    "both": {"one": 1.0, "two": 1.0},
    "weaker": {"one": 0.7, "two": 0.4},
    "blocks": {"two": studio.Strength(0.5, blocks={"re:.*(conv|lin|q_proj).*": 0.5})},
    "samples": {"one": [0.0, 0.5, -1.0], "two": [1.0, 0.25, 0.0]},
    "switched": {"one": [0.0, 1.0, 1.0], "two": [1.0, 1.0, 0.0]},
}


def make_methods() -> None:
    """Every method on every kind of layer, alone and blended, in every format."""
    for name, method, variant in cases():
        record = Record(Path("methods", name, f"{method}-{variant}"))
        make_case(record, name, method, variant)
        record.write()
    make_loftq()


def make_case(record: Record, name: str, method: str, variant: str) -> None:
    """One config on one model: on each layer, then on all that it covers."""
    subject = SUBJECTS[name]
    on = coverage(record, subject, method, variant)
    whole = not subject.layers  # there the config's own targets are taken
    if not (whole or on[None]):
        return
    config = config_of(method, variant, on[None])
    if record.attempt("attach", attach, subject.make(), subject, config) is REFUSED:
        return
    train(record, subject, use(record, subject, config, torch.float32))
    if variant == first_variant(method) and name != "quantized":
        use(record, subject, config, torch.bfloat16, "bf16 ")
    blend(record, subject, config)
    grow(record, subject, config)
    for format in (*FORMATS, None) if whole else FORMATS:
        if whole or on[format]:
            save(record, subject, config_of(method, variant, on[format]), format)


def coverage(record: Record, subject: Subject, method: str, variant: str) -> dict[str | None, list[str]]:
    """Tries every layer by itself; returns those that are covered (None), and those that each format can say."""
    found: dict[str | None, list[str]] = {None: [], **{format: [] for format in FORMATS}}
    for layer in subject.layers:
        model = subject.make()
        config = config_of(method, variant, (layer,))
        if record.attempt(layer, attach, model, subject, config) is REFUSED:
            continue
        found[None].append(layer)
        shake(studio.state(model).values())
        for format in FORMATS:
            what, place = f"{layer} as {format}", place_of(Path("scratch"), format)
            if record.attempt(what, studio.save, model, place, format=format) is not REFUSED:
                record.say(what, file_digest(place))
                found[format].append(layer)
            shutil.rmtree("scratch", ignore_errors=True)
    return found


def use(record: Record, subject: Subject, config: Any, dtype: torch.dtype, prefix: str = "") -> nn.Module:
    """Outputs of the base, at the start, after a shake, baked and unbaked; returns the model with its adapter."""
    model = subject.make().to(dtype)
    record.attempt_output(f"{prefix}base", subject.output, model)
    report = record.attempt(f"{prefix}attach", attach, model, subject, config)
    record.say(f"{prefix}attached", f"{report.sites} {report.parameters} {report.notes}, {studio.trainable(model)}")
    record.keep(f"{prefix}start", studio.state(model))
    record.attempt_output(f"{prefix}at the start", subject.output, model)
    shake(studio.state(model).values())
    record.attempt_output(f"{prefix}live", subject.output, model)
    if record.attempt(f"{prefix}bake", studio.bake, model) is not REFUSED:
        record.attempt_output(f"{prefix}baked", subject.output, model)
        studio.unbake(model)
        record.attempt_output(f"{prefix}unbaked", subject.output, model)
    return model


def train(record: Record, subject: Subject, model: nn.Module) -> None:
    """Gradients, and the tensors after three steps of AdamW; then everything is detached."""
    tensors = {key: tensor for key, tensor in studio.state(model).items() if tensor.requires_grad}
    optimizer = torch.optim.AdamW(tensors.values(), lr=1e-2)
    model.train()
    torch.manual_seed(6)
    for step in range(3):
        loss = subject.call(model).float().square().mean()
        loss.backward()
        if not step:
            record.keep("gradient", {key: t.grad for key, t in tensors.items() if t.grad is not None})
        optimizer.step()
        optimizer.zero_grad()
        record.say(f"loss {step}", loss.item())
    record.keep("trained", studio.state(model))
    record.attempt_output("after training", subject.output, model)
    studio.detach(model)
    record.attempt_output("detached", subject.output, model)


def blend(record: Record, subject: Subject, config: Any) -> None:
    """Two adapters of the method at several strengths, and one beside a LoRA."""
    model = subject.make()
    for seed, name in enumerate(("one", "two")):
        attach(model, subject, config, name=name, seed=seed)
        shake(studio.state(model, name).values(), seed=seed)
    for name, strengths in BLENDS.items():
        if record.attempt(f"blend {name}", studio.blend, model, strengths) is REFUSED:
            continue
        record.attempt_output(f"blend {name}", subject.output, model)
        with studio.sample_rows(model, [2, 2, 0]):
            record.attempt_output(f"blend {name}, other rows", subject.output, model)
        if record.attempt(f"bake {name}", studio.bake, model) is not REFUSED:
            record.attempt_output(f"baked {name}", subject.output, model)
            studio.unbake(model)
    companion = studio.LoRA(rank=1, init="orthogonal", targets=subject.companion)
    if record.attempt("companion", studio.attach, model, companion, name="lora") is not REFUSED:
        shake(studio.state(model, "lora").values(), seed=5)
        studio.blend(model, {"one": 1.0, "lora": -0.4})
        record.attempt_output("beside a LoRA", subject.output, model)
    record.say("adapters", [(info.method, info.strength, info.trainable) for info in studio.adapters(model).values()])
    studio.detach(model)
    record.say("detached", digest(dict(model.named_parameters())) == digest(dict(subject.make().named_parameters())))


def grow(record: Record, subject: Subject, config: Any) -> None:
    """An adapter with more rank than it was attached with."""
    model = subject.make()
    attach(model, subject, config)
    shake(studio.state(model).values())
    report = record.attempt("grow", studio.grow, model, "default", 4, seed=3)
    if report is not REFUSED:
        record.say("grown", f"{report.sites} {report.parameters}")
        record.keep("grown", studio.state(model))
        record.attempt_output("after growing", subject.output, model)


def make_loftq() -> None:
    """The start that makes up for what quantising took."""
    record, whole = Record(Path("methods/quantized/lora-loftq")), two_linears()
    model = copy.deepcopy(whole)
    record.say("quantize", studio.quantize(model, bits=2, group=8, rank=4, iterations=3))
    studio.attach(model, studio.LoRA(rank=4, init="loftq", targets=("0", "2")), original=whole)
    record.keep("start", studio.state(model))
    record.attempt_output("live", SUBJECTS["quantized"].output, model)
    record.write()
