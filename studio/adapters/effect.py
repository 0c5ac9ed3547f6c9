"""Whether an adapter does anything at all."""

from __future__ import annotations

from typing import Any

import torch

from studio.adapters.hosting.attached import assemblies, check_known

__all__ = ["has_effect"]


@torch.no_grad()
def has_effect(model: Any, name: str) -> bool:
    """Says whether an adapter changes any weight or bias, at strength 1.

    The answer is exact (a delta is computed until one is not zero) and quick for an adapter that does something.

    Raises:
        UnknownName: no adapter has this name.

    Example:
        >>> import studio
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> _ = studio.attach(net, studio.LoRA(rank=2, targets=("0",)))
        >>> has_effect(net, "default")  # an adapter starts as the identity
        False
    """
    check_known(model, name)
    for assembly in assemblies(model).values():
        for mount in assembly.mounts.values():
            adapter = mount.adapters.get(name) if name in mount.adapters.names() else None
            if adapter is None:
                continue
            site = mount.site
            weight, bias = (None if tensor is None else tensor.detach() for tensor in (site.weight, site.bias))
            if not adapter(type(adapter).still, weight, bias):
                return True
    return False
