"""Where and in which type a component computes, which is not always where it rests."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["device_of"]


def device_of(pipe: Any, module: Any) -> torch.device:
    """Returns where a module computes: an offloaded one rests elsewhere, or nowhere (meta)."""
    return pipe._execution_device if "_hf_hook" in vars(module) else module.device
