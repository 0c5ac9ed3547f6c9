"""The module that keeps bare parameters, with adapters on them.

Its class is changed in place as that of any layer that carries adapters; the new class has a property for each of its
parameters. Whoever asks the module for an adapted parameter, in its forward or elsewhere, gets ``W + Σ s_i ΔW_i``; its
table of parameters, ``state_dict()`` and ``parameters()`` keep ``W``. The adapters of the parameter ``w`` are under
``<module>.adapters.w.<name>``.
"""

from __future__ import annotations

from threading import get_ident
from typing import cast

import torch
from torch import Tensor, nn

from studio.adapters.hosting.apart import SharedLayer
from studio.adapters.hosting.levels import Levels
from studio.adapters.hosting.mount import Mount
from studio.adapters.sites.site import Site

__all__ = ["Owner"]


class Owner:
    """What the hosted module keeps: the mount of each adapted parameter, and what it read while its forward runs."""

    def __init__(self) -> None:
        self.mounts: dict[str, Mount] = {}
        self.depths: dict[int, int] = {}  # thread -> how often its call is inside the module's forward
        self.read: dict[tuple[int, str, bool], Tensor] = {}

    def __getstate__(self) -> dict[str, object]:
        return {"mounts": self.mounts, "depths": {}, "read": {}}

    @property
    def site(self) -> Site:
        """The first of its adapted parameters."""
        return next(iter(self.mounts.values())).site

    @property
    def levels(self) -> Levels:
        """The levels that they follow."""
        return next(iter(self.mounts.values())).levels

    def forget(self) -> None:
        """Drops all plans and tensors made from them."""
        self.read.clear()
        for mount in self.mounts.values():
            mount.forget()

    def enter(self) -> None:
        """Notes that the module's forward begins; a parameter that it reads in a loop is then made once."""
        self.depths[get_ident()] = self.depths.get(get_ident(), 0) + 1

    def leave(self) -> None:
        """Notes that it ended, by an exception too."""
        depth = self.depths.pop(get_ident()) - 1
        if depth:
            self.depths[get_ident()] = depth
        else:
            for key in [key for key in self.read if key[0] == get_ident()]:
                del self.read[key]

    def tensor(self, module: nn.Module, name: str) -> Tensor:
        """Returns what the parameter ``name`` of ``module`` is under the current blend.

        Raises:
            SharedLayer: strengths differ by sample.
        """
        parameter = cast(Tensor, module._parameters[name])
        mount = self.mounts.get(name)
        # offloading asks for what it has put away
        away = parameter.device.type == "meta" and get_ident() not in self.depths
        if mount is None or away:
            return parameter
        mount.note_called()
        if torch.compiler.is_compiling():
            return self._made(mount, parameter)
        if not mount.acts():
            return parameter
        key = (get_ident(), name, torch.is_grad_enabled())
        found = self.read.get(key)
        if found is None:
            found = self._made(mount, parameter)
            if get_ident() in self.depths:
                self.read[key] = found
        return found

    def _made(self, mount: Mount, parameter: Tensor) -> Tensor:
        if not mount.prepare().uniform:
            raise SharedLayer(
                f"strengths that differ by sample cannot act on {mount.site.path}: it is a bare parameter, which its "
                "module uses for all samples at once; give one strength for all"
            )
        total, _ = mount.adapted(parameter, None)
        return total
