"""A baked blend that is set aside and put back: its weights are computed once, and exchanged as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from studio.adapters.bake import unbake
from studio.adapters.contract.strength import Strength
from studio.adapters.hosting.assembly import Assembly
from studio.adapters.hosting.attached import assemblies, check_unbaked
from studio.adapters.hosting.turns import in_turn
from studio.quantization.backend import Held

__all__ = ["Folded", "folded_bytes", "put_back", "set_aside"]

State = list[tuple[Tensor, int]]


@dataclass(frozen=True)
class Folded:
    """The weights of a baked blend, which are on no model now.

    Attributes:
        parts: of each component: what is attached to it, its blend, path -> the tensors that were in the layer, and the
            tensors that they were made of.
    """

    parts: tuple[tuple[Assembly, dict[str, Strength], dict[str, list[Held]], State], ...]


@in_turn
def set_aside(model: Any) -> Folded:
    """Gives the base its original tensors back, as :func:`studio.unbake` does, and keeps the folded ones.

    Args:
        model: the model or pipeline, with a blend baked into its weights.

    Raises:
        DoesNotFit: nothing is baked.
    """
    baked = {
        assembly: (
            dict(assembly.baked),
            {path: _now(assembly, path, held) for path, held in assembly.originals.items()},
        )
        for assembly in assemblies(model).values()
        if assembly.baked is not None
    }
    unbake(model)
    return Folded(tuple((one, blend, tensors, _state(one)) for one, (blend, tensors) in baked.items()))


@in_turn
def put_back(model: Any, folded: Folded) -> bool:
    """Bakes what was set aside, unless the base or an adapter has changed since; says whether it did.

    Args:
        model: the model or pipeline. folded: what was set aside of it.

    Raises:
        DoesNotFit: a blend is baked already.
    """
    check_unbaked(model, "bake")
    here = list(assemblies(model).values())
    if not all(one in here and _same(_state(one), state) for one, _, _, state in folded.parts):
        return False
    for assembly, blend, tensors, _ in folded.parts:
        for path, held in tensors.items():
            assembly.originals[path] = _now(assembly, path, held)
            module = assembly.mounts[path].site.module
            for table, name, tensor in held:
                getattr(module, table)[name] = tensor
        assembly.levels.baked = dict(blend)
        assembly.levels.touch()
    return True


def folded_bytes(model: Any, names: Any) -> int:
    """Returns the bytes of the weights that some adapters change: what a baked blend takes beside the base.

    Args:
        model: the model or pipeline. names: the adapters.
    """
    found = 0
    for assembly in assemblies(model).values():
        for mount in assembly.mounts.values():
            if set(mount.adapters.names()) & set(names):
                found += mount.site.weight.numel() * mount.site.weight.element_size()
    return found


def _now(assembly: Assembly, path: str, held: list[Held]) -> list[Held]:
    """What a layer has in the places of ``held`` now."""
    module = assembly.mounts[path].site.module
    return [Held(table, name, getattr(module, table).get(name)) for table, name, _ in held]


def _state(assembly: Assembly) -> State:
    """The tensors of the adapted layers and of their adapters, with their versions."""
    modules: list[nn.Module] = []
    for mount in assembly.mounts.values():
        modules += [mount.site.module, *(one for one in mount.adapters._modules.values() if one is not None)]
    return [
        (tensor, 0 if tensor.is_inference() else tensor._version)
        for module in modules
        for table in (module._parameters, module._buffers)
        for tensor in table.values()
        if tensor is not None
    ]


def _same(one: State, other: State) -> bool:
    return len(one) == len(other) and all(
        tensor is then and version == before for (tensor, version), (then, before) in zip(one, other, strict=True)
    )
