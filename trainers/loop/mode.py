"""What the process and the modules are switched to while they train."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from studio.adapters.contract.adapter import generator_for
from studio.device import choose_dtype
from studio.trainers.loop.block_swap import BlockSwap
from studio.trainers.loop.plan import Plan

__all__ = [
    "Loan",
    "accelerator_for",
    "chance",
    "checkpoint_gradients",
    "checkpoints_gradients",
    "evaluating",
    "kept_activations",
    "precise",
    "training_mode",
]


def precise(plan: Plan, device: torch.device, say: Callable[[str], None]) -> Plan:
    """Returns the plan with its products in a type that the device has.

    Args:
        plan: the loop's settings. device: where it computes. say: takes a line where that is another one, or slow.

    Example:
        >>> precise(Plan(), torch.device("cpu"), print).precision
        'fp32'
    """
    precision = choose_dtype(plan.precision, device, training=True)
    if precision.note:
        say(precision.note)
    return dataclasses.replace(plan, precision="bf16" if precision.dtype is torch.bfloat16 else "fp32")


def accelerator_for(precision: str, device: torch.device) -> Any:
    """Returns an accelerator; accelerate's process-wide state is made anew where it says another precision."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    wanted = "bf16" if precision == "bf16" else "no"
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != wanted:
        AcceleratorState._reset_state()
    return Accelerator(mixed_precision=wanted, cpu=device.type == "cpu")


@contextlib.contextmanager
def chance(seed: int, number: int, device: torch.device) -> Iterator[None]:
    """Gives what draws from torch's global generators (dropout) a stream of its own, and then the old one back.

    Args:
        seed: the run's seed.
        number: of the first sample of the micro-batch.
        device: where it is computed.
    """
    stream = generator_for(seed, "dropout", number).initial_seed()
    if device.type != "cpu":
        with torch.random.fork_rng([device], device_type=device.type):
            torch.manual_seed(stream)
            yield
        return
    # the same without torch's search for other devices, which costs more than all our draws
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(stream)
    try:
        yield
    finally:
        torch.set_rng_state(before)


def kept_activations(
    offloaded: bool, device: torch.device, swap: BlockSwap | None = None
) -> contextlib.AbstractContextManager[Any]:
    """Returns a context in which what a forward pass keeps for the backward pass stays where it is, or on the CPU.

    Args:
        offloaded: whether it goes to the CPU. device: where it is computed.
        swap: of blocks that wait elsewhere, whose weights are not kept; None: there are none.
    """
    kept: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if offloaded:
        kept = torch.autograd.graph.save_on_cpu(pin_memory=device.type != "cpu", device_type=device.type)
    return kept if swap is None else swap.keeping(kept)


@contextlib.contextmanager
def training_mode(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Switches modules to training (dropout, gradient checkpointing), and each part back to what it was."""
    before = [(module, module.training) for root in modules for module in root.modules()]
    for root in modules:
        root.train()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def checkpoints_gradients(module: nn.Module) -> bool:
    """Whether a part of ``module`` recomputes its activations in the backward pass."""
    return any(bool(getattr(child, "gradient_checkpointing", False)) for child in module.modules())


def checkpoint_gradients(module: Any, on: bool, run: Callable[..., Any] | None = None) -> None:
    """Switches gradient checkpointing of a diffusers or transformers module; never the re-entrant kind.

    Args:
        module: the module.
        on: whether it shall.
        run: what runs a block of a diffusers module; None: its usual way.
    """
    if isinstance(getattr(module, "_supports_gradient_checkpointing", None), bool):  # diffusers
        if on:
            module.enable_gradient_checkpointing(run)
        else:
            module.disable_gradient_checkpointing()
        return
    # transformers 5.23 gave its switches new names; the old ones warn
    word = "activation" if "activation_checkpointing_enable" in dir(type(module)) else "gradient"
    if on:
        settings = {f"{word}_checkpointing_kwargs": {"use_reentrant": False}}
        getattr(module, f"{word}_checkpointing_enable")(**settings)
    else:
        getattr(module, f"{word}_checkpointing_disable")()


@contextlib.contextmanager
def evaluating(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Switches dropout off for a while."""
    training = [module for module in modules if module.training]
    for module in training:
        module.eval()
    try:
        yield
    finally:
        for module in training:
            module.train()


class Loan:
    """Modules that are lent to a training, which gives them back as they were.

    Args:
        modules: the base's, before an adapter is attached.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._before = [(module, checkpoints_gradients(module)) for module in modules]
        self._required = [p for module, _ in self._before for p in module.parameters() if p.requires_grad]

    def give_back(self) -> None:
        """Switches gradient checkpointing, and what requires gradients, back."""
        for module, before in self._before:
            if checkpoints_gradients(module) != before:
                checkpoint_gradients(module, before)
        for parameter in self._required:
            parameter.requires_grad_(True)
