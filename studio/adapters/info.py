"""What is on a model: its adapters, how much of it is trained, and the tensors of one adapter."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from studio.adapters.contract.adapter import AdapterConfig
from studio.adapters.contract.strength import Strength
from studio.adapters.hosting.assembly import site_at
from studio.adapters.hosting.attached import assemblies, check_known, known_names, whole_path
from studio.adapters.sites.site import Site
from studio.errors import DoesNotFit
from studio.families import components as components_of
from studio.quantization.counting import hidden_numbers

__all__ = ["AdapterInfo", "TrainableReport", "adapters", "site_of", "split_path", "state", "trainable"]


@dataclass(frozen=True)
class AdapterInfo:
    """An adapter on a model.

    Attributes:
        name: its name. method: registry name of its method, or of several ("lora+full"). config: its config.
        sites: paths of the layers that it changes. parameters: numbers in its tensors.
        strength: its strength in the current blend, 0.0 when it is off.
        trainable: whether its tensors require gradients. baked: whether it is folded into the weights now.
        metadata: what its file said about it.
    """

    name: str
    method: str
    config: AdapterConfig
    sites: tuple[str, ...] = field(repr=False)
    parameters: int
    strength: float | Strength
    trainable: bool
    baked: bool
    metadata: dict[str, str]


@dataclass(frozen=True)
class TrainableReport:
    """How much of a model is trained.

    Attributes:
        trainable: numbers that require gradients. total: all numbers, adapters included.

    Example:
        >>> print(TrainableReport(8, 100))
        trainable params: 8 || all params: 100 || trainable%: 8.0000
    """

    trainable: int
    total: int

    def __str__(self) -> str:
        percent = 100 * self.trainable / self.total if self.total else 0.0
        return f"trainable params: {self.trainable:,} || all params: {self.total:,} || trainable%: {percent:.4f}"


def adapters(model: Any) -> dict[str, AdapterInfo]:
    """Returns what is attached to ``model``, by name, in the order of attaching.

    Example:
        >>> import torch, studio
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> _ = studio.attach(net, studio.LoRA(rank=2, targets=("0",)), name="dog")
        >>> info = studio.adapters(net)["dog"]
        >>> info.method, info.sites, info.strength
        ('lora', ('0',), 1.0)
    """
    found = {}
    for name in known_names(model):
        sites: list[str] = []
        count, requires = 0, False
        for component, assembly in assemblies(model).items():
            if name not in assembly.records:
                continue
            record, current = assembly.records[name], assembly
            for path, adapter in assembly.adapters(name):
                sites.append(whole_path(component, path))
                count += sum(tensor.numel() for tensor in adapter.tensors().values())
                requires = requires or adapter.trainable
        acting = current.levels.strengths if current.baked is None else current.baked
        strength = acting.get(name, Strength(0.0))
        number = strength.value if strength == Strength(strength.value) else strength
        baked = current.baked is not None and name in current.baked
        info = AdapterInfo(
            name, record.config.label, record.config, tuple(sites), count, number, requires, baked, record.metadata
        )
        found[name] = info
    return found


def trainable(model: Any) -> TrainableReport:
    """Counts the parameters of ``model`` that require gradients, and all of them; tied ones once."""
    unique = {id(p): p for module in components_of(model).values() for p in module.parameters()}
    numbers = [(parameter.numel(), parameter.requires_grad) for parameter in unique.values()]
    hidden = sum(map(hidden_numbers, components_of(model).values()))
    return TrainableReport(sum(n for n, required in numbers if required), hidden + sum(n for n, _ in numbers))


def state(model: Any, name: str = "default") -> dict[str, Tensor]:
    """Returns the live tensors of an adapter under ``"<path>.<tensor>"``, in sorted order.

    Raises:
        UnknownName: no adapter has that name.

    Example:
        >>> import torch, studio
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> _ = studio.attach(net, studio.LoRA(rank=2, targets=("0",)))
        >>> {key: tuple(tensor.shape) for key, tensor in studio.state(net).items()}
        {'0.down': (2, 8), '0.up': (8, 2)}
    """
    check_known(model, name)
    found = {}
    for component, assembly in assemblies(model).items():
        if name in assembly.records:
            for path, adapter in assembly.adapters(name):
                for key, tensor in adapter.tensors().items():
                    found[f"{whole_path(component, path)}.{key}".lstrip(".")] = tensor
    return dict(sorted(found.items()))


def site_of(model: Any, path: str) -> Site:
    """Returns the site at ``path`` (with its component in front for a pipeline).

    Raises:
        DoesNotFit: there is no such layer. UnsupportedLayer: it cannot be adapted.
    """
    modules = components_of(model)
    component, rest = split_path(path, modules)
    return site_at(modules[component], rest)


def split_path(path: str, components: Collection[str]) -> tuple[str, str]:
    """Splits a path into its component and the path inside it; a model by itself has the component ``""``.

    Args:
        path: path of a layer, with its component in front for a pipeline. components: those of the model.

    Raises:
        DoesNotFit: it begins with no component of the model.

    Example:
        >>> split_path("unet.mid_block.to_q", ["unet", "vae"]), split_path("mid_block.to_q", [""])
        (('unet', 'mid_block.to_q'), ('', 'mid_block.to_q'))
    """
    component, _, rest = path.partition(".") if "" not in components else ("", "", path)
    if component not in components:
        raise DoesNotFit(f"{path!r} names no component of the model; it has {', '.join(components)}")
    return component, rest
