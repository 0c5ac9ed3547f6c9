"""Offloading: where the weights of a pipeline rest while they do not compute.

==========  ===========================================================================================================
none        where they compute
model       in the CPU's memory; one component at a time is on the accelerator
group       in the CPU's memory; of the denoiser one block at a time is on the accelerator, of the rest one layer
sequential  in the CPU's memory; one layer at a time is on the accelerator: slowest, least memory
==========  ===========================================================================================================

The hooks are accelerate's and diffusers'; adapters that come before or after them travel with their layers. Drawing
works so, training does not: the backward pass wants the weights that the forward pass has used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from studio.errors import DoesNotFit
from studio.families.family import family_in
from studio.registry import Registry

__all__ = ["OFFLOADS", "Offload", "check_resident", "offload", "offloaded", "resting"]

_GROUP_HOOKS: Final = ("group_offloading", "layer_execution_tracker", "lazy_prefetch_group_offloading")


@dataclass(frozen=True)
class Offload:
    """One way to offload.

    Args:
        put: ``(pipe, device)``; ``device`` is where it computes.
        accelerator: whether that must not be the CPU.
    """

    put: Callable[[Any, torch.device], None]
    accelerator: bool = False


OFFLOADS: Registry[Offload] = Registry("way of offloading")


def offload(pipe: Any, way: str, device: torch.device) -> None:
    """Makes the weights of a pipeline rest in another way; what held before is given back first.

    Args:
        pipe: a diffusers pipeline.
        way: a key of :data:`OFFLOADS`.
        device: where it computes.

    Raises:
        UnknownName: there is no such way.
        DoesNotFit: it is for accelerators, and ``device`` is a CPU.
    """
    chosen = OFFLOADS[way]
    if chosen.accelerator and device.type == "cpu":
        raise DoesNotFit(
            f"offload={way!r} keeps weights in the CPU's memory while an accelerator does not need them, and this "
            "computes on the cpu, where they are anyway: leave it out"
        )
    _give_back(pipe)
    chosen.put(pipe, device)


def offloaded(module: nn.Module) -> bool:
    """Whether a module's weights rest elsewhere than they compute."""
    return any(_is_hooked(part) for part in module.modules())


def check_resident(pipe: Any) -> None:
    """Checks that no component of a pipeline is offloaded, before it is moved, which training does too.

    Raises:
        DoesNotFit: one is.
    """
    for name, part in _parts(pipe):
        if offloaded(part):
            raise DoesNotFit(
                f"{name} is offloaded: it is neither moved nor trained so (a backward pass wants the weights where "
                "they compute); open the base with offload='none' first"
            )


@contextmanager
def resting(pipe: Any) -> Iterator[None]:
    """At its end every component of a pipeline that is offloaded as a whole is at rest, the last one included."""
    try:
        yield
    finally:
        for hook in vars(pipe).get("_all_hooks", ()):
            hook.offload()


def _parts(pipe: Any) -> Iterator[tuple[str, nn.Module]]:
    yield from ((name, part) for name, part in pipe.components.items() if isinstance(part, nn.Module))


def _is_hooked(module: nn.Module) -> bool:
    registry = vars(module).get("_diffusers_hook")
    return "_hf_hook" in vars(module) or (registry is not None and registry.get_hook(_GROUP_HOOKS[0]) is not None)


def _here(pipe: Any, device: torch.device) -> None:
    pipe.to(device)


def _by_model(pipe: Any, device: torch.device) -> None:
    pipe.enable_model_cpu_offload(device=device)


def _by_layer(pipe: Any, device: torch.device) -> None:
    from accelerate import cpu_offload

    for _, part in _parts(pipe):
        part.to("cpu")
        cpu_offload(part, device, offload_buffers=len(part._parameters) > 0)


def _by_group(pipe: Any, device: torch.device) -> None:
    from diffusers.hooks import apply_group_offloading

    parts = dict(_parts(pipe))
    family = family_in(parts)
    for name, part in parts.items():
        blocks: dict[str, Any] = {"offload_type": "leaf_level"}
        if family is not None and name == family.denoiser:
            blocks = {"offload_type": "block_level", "num_blocks_per_group": 1}
        apply_group_offloading(part, onload_device=device, offload_device=torch.device("cpu"), **blocks)


def _give_back(pipe: Any) -> None:
    """Takes all hooks off; vars, class and bits of every module are as before them."""
    from accelerate.hooks import remove_hook_from_module

    for module in [module for _, part in _parts(pipe) if offloaded(part) for module in part.modules()]:
        registry = vars(module).get("_diffusers_hook")
        if registry is not None:
            for name in _GROUP_HOOKS:
                registry.remove_hook(name, recurse=False)
            if not registry.hooks:
                del module._diffusers_hook
        remove_hook_from_module(module)
        if getattr(vars(module).get("forward"), "__func__", None) is type(module).forward:
            del module.forward  # that of the class, set on the object
    if "_all_hooks" in vars(pipe):
        pipe._all_hooks = []


OFFLOADS.add("none", Offload(_here))
OFFLOADS.add("model", Offload(_by_model, accelerator=True))
OFFLOADS.add("sequential", Offload(_by_layer, accelerator=True))
OFFLOADS.add("group", Offload(_by_group))
