"""Layers of text encoders that no picture depends on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from studio.families.family import Silent

__all__ = ["last_layer_unread"]


def last_layer_unread(component: str, layers: str, reason: str) -> Callable[[str, nn.Module], tuple[Silent, ...]]:
    """Returns a family's ``silent`` where prompts are the states before an encoder's last layer.

    Args:
        component: the encoder.
        layers: the path of its layers.
        reason: why, as the end of a sentence.
    """

    def silent(name: str, module: nn.Module) -> tuple[Silent, ...]:
        if name != component:
            return ()
        config: Any = module.config
        return (Silent((f"{layers}.{config.num_hidden_layers - 1}.*",), reason),)

    return silent
