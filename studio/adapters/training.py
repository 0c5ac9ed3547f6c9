"""What training asks of an adapter besides gradients: a penalty, a hook after each step, and its scratch tensors."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from studio.adapters.contract.adapter import Adapter
from studio.adapters.hosting.assembly import Assembly
from studio.adapters.hosting.attached import assemblies, check_known, whole_path

__all__ = ["layers", "on_step", "penalty", "scratch"]


def _holding(model: Any, name: str) -> list[Assembly]:
    check_known(model, name)
    return [assembly for assembly in assemblies(model).values() if name in assembly.records]


def penalty(model: Any, name: str = "default") -> Tensor | None:
    """Returns what the method adds to the loss (AdaLoRA keeps its factors orthogonal), or None.

    Raises:
        UnknownName: no adapter has that name.
    """
    total: Tensor | None = None
    for assembly in _holding(model, name):
        for method, adapters in assembly.by_method(name):
            one = method.penalty(adapters)
            if one is not None:
                total = one if total is None else total + one
    return total


def on_step(model: Any, name: str = "default", *, step: int, steps: int) -> None:
    """Tells an adapter that an optimizer step was done; call it while the gradients are still there.

    The training loop does so. A loop of one's own that trains AdaLoRA or Delta-LoRA has to as well, after
    ``optimizer.step()`` and before ``optimizer.zero_grad()``.

    Args:
        model: the model or pipeline. name: the adapter.
        step: optimizer steps done; 0 before the first one, where what cannot work is refused.
        steps: how many there will be.

    Raises:
        UnknownName: no adapter has that name. BadConfig: a config that does not fit that number of steps.
    """
    for assembly in _holding(model, name):
        for method, adapters in assembly.by_method(name):
            method.on_step(adapters, step, steps)


def layers(model: Any, name: str = "default") -> dict[str, Adapter]:
    """Returns the layers of an adapter under ``"<component>.<path>"``.

    Raises:
        UnknownName: no adapter has that name.
    """
    return {
        whole_path(assembly.component, path): adapter
        for assembly in _holding(model, name)
        for path, adapter in assembly.adapters(name)
    }


def scratch(model: Any, name: str = "default") -> dict[str, Tensor]:
    """Returns the tensors that only training needs, under ``"<component>.<path>.<tensor>"``; checkpoints hold them.

    Raises:
        UnknownName: no adapter has that name.
    """
    found = {}
    for assembly in _holding(model, name):
        for path, adapter in assembly.adapters(name):
            for key in adapter.scratch:
                tensor = adapter._buffers.get(key)
                if tensor is not None:
                    found[whole_path(assembly.component, path, key)] = tensor
    return dict(sorted(found.items()))
