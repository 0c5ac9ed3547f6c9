"""What waits in the CPU's memory while a run trains: encoders whose outputs are cached, and are wanted for previews."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from studio.device import free_cache

__all__ = ["Idle"]


class Idle:
    """Modules that a run needs now and then.

    They are moved, not dropped, so their bits stay; on a CPU there is nothing to gain, and nothing is moved.

    Args:
        modules: the modules, which are on ``device``.
        device: where they compute.

    Example:
        >>> idle = Idle([nn.Linear(1, 1)], torch.device("cpu"))
        >>> idle.put_away()
        >>> with idle.at_hand():
        ...     idle.away
        False
    """

    def __init__(self, modules: Sequence[nn.Module], device: torch.device) -> None:
        self.modules, self.device, self.away = modules, device, False

    def put_away(self) -> None:
        """Moves the modules into the CPU's memory, and gives theirs on the device back to it."""
        if self.device.type == "cpu" or self.away:
            return
        self.away = True
        for module in self.modules:
            module.to("cpu")
        free_cache(self.device)

    def fetch(self) -> None:
        """Moves the modules where they compute."""
        if not self.away:
            return
        for module in self.modules:
            module.to(self.device)
        self.away = False

    @contextmanager
    def at_hand(self) -> Iterator[None]:
        """While it lasts, the modules are where they compute; afterwards where they were."""
        was_away = self.away
        self.fetch()
        try:
            yield
        finally:
            if was_away:
                self.put_away()
