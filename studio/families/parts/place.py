"""Where and in which type a component computes, which is not always where it rests."""

from __future__ import annotations

from typing import Any

import torch

from studio.families.offloading import offloaded

__all__ = ["device_of"]


def device_of(pipe: Any, module: Any) -> torch.device:
    """Returns where a module computes: an offloaded one rests elsewhere, or nowhere (meta)."""
    return pipe._execution_device if offloaded(module) else module.device
