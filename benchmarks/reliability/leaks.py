"""Leaks: verbs in cycles; afterwards there may be no more objects, tensors and hooks than after the first cycles."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

import studio
from benchmarks.reliability.trial import Trial, attempt

TITLE: Final = "cycles that must leave nothing behind"
TARGETS: Final = ("0", "2")
X: Final = torch.linspace(-1, 1, 16).reshape(2, 8)


def net() -> nn.Module:
    """A small model of two layers and a norm."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8))


def attached(model: nn.Module, file: Path) -> None:
    studio.attach(model, studio.LoRA(rank=2, targets=TARGETS), name="one")
    model(X)
    studio.detach(model)


def loaded(model: nn.Module, file: Path) -> None:
    studio.load(model, file, name="one")
    model(X)
    studio.detach(model, "one")


def blended(model: nn.Module, file: Path) -> None:
    if not studio.adapters(model):
        studio.load(model, file, name="one")
    with studio.blended(model, {"one": 0.5}):
        model(X)
    studio.blend(model, {"one": [0.1, 0.9]})
    model(X)


def baked(model: nn.Module, file: Path) -> None:
    if not studio.adapters(model):
        studio.load(model, file, name="one")
    studio.blend(model, "one")
    studio.bake(model)
    model(X)
    studio.unbake(model)


def trained(model: nn.Module, file: Path) -> None:
    studio.attach(model, studio.DoRA(rank=2, targets=TARGETS), name="two")
    model(X).sum().backward()
    studio.detach(model)


def through_peft(model: nn.Module, file: Path) -> None:
    from studio.peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=list(TARGETS)))
    wrapped(X)
    wrapped.unload()


def refused(model: nn.Module, file: Path) -> None:
    """What goes wrong must leave nothing either."""
    for attempt_ in (
        lambda: studio.attach(model, studio.LoRA(rank=2, targets=("nothing",))),
        lambda: studio.attach(model, studio.LoRA(rank=20, targets=TARGETS)),
        lambda: studio.load(model, file.with_name("nowhere.safetensors")),
    ):
        try:
            attempt_()
        except studio.StudioError:
            continue
        raise AssertionError("it was not refused")


CYCLES: Final[tuple[Callable[[nn.Module, Path], None], ...]] = (
    attached, loaded, blended, baked, trained, through_peft, refused,
)  # fmt: skip


def counted() -> tuple[int, int]:
    """Objects that the collector knows, and tensors among them."""
    gc.collect()
    everything: list[Any] = gc.get_objects()
    return len(everything), sum(isinstance(one, torch.Tensor) for one in everything)


def trials(folder: Path, long: bool) -> Iterator[Trial]:
    """Runs each cycle 300 times, or 20, and counts before and after."""
    file = folder / "adapter.safetensors"
    source = net()
    studio.attach(source, studio.LoRA(rank=2, targets=TARGETS, init="orthogonal"))
    with torch.no_grad():
        for tensor in studio.state(source).values():
            tensor += 0.1
    studio.save(source, file)
    for cycle in CYCLES:
        yield from _repeated(cycle, file, 300 if long else 20)


def _repeated(cycle: Callable[[nn.Module, Path], None], file: Path, times: int) -> Iterator[Trial]:
    model = net()
    for _ in range(5):  # caches fill
        cycle(model, file)
    before = counted()
    done = [attempt(f"{cycle.__name__}, cycle {number}", lambda: cycle(model, file) or "") for number in range(times)]
    after = counted()
    yield from done
    # what is noted of the trials themselves is no leak
    objects, tensors = (after[0] - before[0] - len(done)) / times, (after[1] - before[1]) / times
    fault = "" if objects < 0.5 and tensors < 0.1 else f"a cycle leaves {objects:.1f} objects, {tensors:.1f} tensors"
    yield Trial(f"{cycle.__name__}: what {times} cycles leave", fault, 0.0, 0)
