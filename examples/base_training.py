"""What the scripts that train a base from scratch share: draws by step, two optimisers, a loop that can be resumed.

They also read the same options: a seed, and one for each of the sizes.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from studio.atomic import atomic_path

S = TypeVar("S")


class Sized(Protocol):
    """What a training's sizes say to the loop."""

    @property
    def steps(self) -> int: ...
    @property
    def warmup(self) -> int: ...
    @property
    def rate(self) -> float: ...
    @property
    def matrix_rate(self) -> float: ...


def drawn_at(seed: int, *parts: int | str) -> random.Random:
    """The source of randomness of one step: a resumed run draws what an uninterrupted one would have."""
    digest = hashlib.blake2b(repr((seed, *parts)).encode(), digest_size=8).digest()
    return random.Random(int.from_bytes(digest, "big"))


def optimizers(model: Any, sizes: Sized) -> list[torch.optim.Optimizer]:
    """Muon for the matrices, AdamW for the embeddings, the norms and all else."""
    tables = {id(p) for part in model.modules() if isinstance(part, torch.nn.Embedding) for p in part.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices = [p for p in trained if p.dim() == 2 and id(p) not in tables]
    others = [p for p in trained if p.dim() != 2 or id(p) in tables]
    muon = torch.optim.Muon(matrices, lr=sizes.matrix_rate, weight_decay=0.01, momentum=0.95)
    return [muon, torch.optim.AdamW(others, lr=sizes.rate, betas=(0.9, 0.95), weight_decay=0.01)]


def resume(state: Path, model: Any, steppers: Sequence[torch.optim.Optimizer]) -> int:
    """Brings a training to where it was kept, and returns the number of its next step."""
    held = torch.load(state, weights_only=True)
    model.load_state_dict(held["model"])
    for stepper, kept in zip(steppers, held["steppers"], strict=True):
        stepper.load_state_dict(kept)
    return int(held["step"])


def keep(state: Path, model: Any, steppers: Sequence[torch.optim.Optimizer], step: int) -> None:
    """Writes down all that :func:`resume` needs."""
    with atomic_path(state) as temporary:
        steps = [stepper.state_dict() for stepper in steppers]
        torch.save({"model": model.state_dict(), "steppers": steps, "step": step}, temporary)


def step_on(loss: Tensor, model: Any, steppers: Sequence[torch.optim.Optimizer]) -> float:
    """Takes one step down a loss, and returns it."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for stepper in steppers:
        stepper.step()
        stepper.zero_grad(set_to_none=True)
    return float(loss.detach())


def train_steps(
    model: Any, sizes: Sized, state: Path, loss_at: Callable[[int], Tensor], *, save_every: int, stop_at: int | None,
    say: Callable[[str], None],
) -> bool:  # fmt: skip
    """Trains a model: a short rise of the rates, then half a cosine down to a twentieth.

    Args:
        model: what is trained, in place.
        sizes: the steps and the rates.
        state: the file that an interrupted training goes on from.
        loss_at: the loss of a step, which follows from its number alone.
        save_every: steps between saved states. stop_at: the step to stop before.
        say: takes lines for the user.

    Returns:
        Whether it came to its end.
    """
    steppers = optimizers(model, sizes)
    full = [[group["lr"] for group in stepper.param_groups] for stepper in steppers]
    begin = resume(state, model, steppers) if state.is_file() else 0
    begun, seen = time.time(), 0.0
    for step in range(begin, sizes.steps):
        if step == stop_at:
            return False
        rate = min((step + 1) / sizes.warmup, 1.0) * (0.05 + 0.95 * (1 + math.cos(math.pi * step / sizes.steps)) / 2)
        for stepper, rates in zip(steppers, full, strict=True):
            for group, top in zip(stepper.param_groups, rates, strict=True):
                group["lr"] = top * rate
        loss = step_on(loss_at(step), model, steppers)
        seen = loss if not seen else 0.98 * seen + 0.02 * loss
        if (step + 1) % 100 == 0 or step + 1 == sizes.steps:
            say(f"step {step + 1}: loss {seen:.3f}, {time.time() - begun:.0f} s")
        if (step + 1) % save_every == 0:
            keep(state, model, steppers, step + 1)
    return True


def command_line(doc: str | None, sizes: Any, *, packages: str = "") -> argparse.ArgumentParser:
    """What a script reads from the command line: where to, a seed, and its sizes.

    Args:
        doc: what the script says of itself. sizes: an instance with the defaults.
        packages: what the folder of npm packages in front of it is called; "" for a script that reads none.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if packages:
        parser.add_argument("npm", type=Path, help=packages)
    parser.add_argument("out", type=Path, help="where the base goes")
    parser.add_argument("--seed", type=int, default=0)
    for name, value in vars(sizes).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    return parser


def sizes_in(given: argparse.Namespace, kind: Callable[..., S]) -> S:
    """The sizes that the command line gave, of a class whose every field has a default."""
    return kind(**{name: getattr(given, name) for name in vars(kind())})
