"""What every packing and every backend can do, and the table of backends."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Final, NamedTuple, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studio.errors import BadConfig
from studio.packages import need
from studio.quantization.grid import Grid
from studio.registry import Registry

__all__ = ["BACKENDS", "PACKINGS", "Backend", "Held", "Named", "Packing", "Undo", "backend_called", "packing_of"]

Undo: TypeAlias = Callable[[], None]


class Held(NamedTuple):
    """What a module holds in one place.

    Attributes:
        table: the module's attribute that is a table: ``"_parameters"``, ``"_buffers"``, ``"__dict__"``.
        name: in the table. value: what is there; None: nothing.
    """

    table: str
    name: str
    value: Any


class Packing(ABC):
    """How the layers of one library keep a weight in few bits.

    A baked blend puts a dense weight in the place :attr:`weight_name` of the layer's parameters; :meth:`product` then
    multiplies by that.

    Attributes:
        says: what its layers are called in messages.
        weight_name: where it stands.
        fetched: whether its weights can wait elsewhere than they compute, and be copied when they do.
    """

    says: ClassVar[str]
    weight_name: ClassVar[str] = "weight"
    fetched: ClassVar[bool] = True

    @abstractmethod
    def owns(self, cls: type[nn.Module], weight: type[Any]) -> bool:
        """Says whether a layer of class ``cls`` whose parameter ``weight`` has that type is kept so."""

    def check(self, path: str, layer: nn.Module) -> None:  # noqa: B027  (most have nothing to refuse)
        """Checks that adapters can act on the layer.

        Raises:
            UnsupportedLayer: its weight cannot be read, or no gradient goes through it.
        """

    @abstractmethod
    def packs(self, weight: Tensor | None) -> bool:
        """Says whether what stands in the weight's place is packed, and no dense one ``(rows, cols)`` of a bake."""

    @abstractmethod
    def unpacked(self, layer: Any) -> Tensor:
        """Returns the packed weight as numbers ``(rows, cols)``, in the type that the layer computes in."""

    @abstractmethod
    def tensors(self, layer: Any) -> dict[str, Tensor]:
        """Returns the tensors that the packed weight is made of, by name."""

    @abstractmethod
    def repacked(self, layer: Any, weight: Tensor) -> list[Held]:
        """Returns what the layer has to hold for another weight ``(rows, cols)``, packed in the same way."""

    def shape(self, layer: Any) -> tuple[int, int]:
        """Returns ``(rows, cols)`` of the weight."""
        return layer.out_features, layer.in_features

    def device(self, layer: Any) -> torch.device:
        """Returns where the weight is."""
        return cast(Tensor, layer._parameters[self.weight_name]).device

    def packed_product(self, layer: Any, forward: Callable[..., Tensor], x: Tensor) -> Tensor:
        """Computes ``x Wᵀ + b`` of ``x`` ``(..., cols)`` with the packed weight; ``forward`` is that of its class."""
        return forward(layer, x)

    def grid(self, layer: Any) -> Grid | None:
        """Returns the weight as numbers of a grid with zero points, or None where it is none."""
        return None

    def shifted(self, layer: Any, change: Tensor) -> list[Held]:
        """Returns what a layer on a grid has to hold with ``change`` ``(rows, groups)`` added to its weight."""
        raise NotImplementedError(f"{self.says} have no zero points")

    def remade(self, weight: Any, make: Callable[[Tensor], Tensor]) -> Tensor | None:
        """Returns a packed weight with other tensors in it, those that ``make`` gives; None where that is not possible.

        Args:
            weight: a tensor of a layer that is of a type of the library's own. make: takes each tensor in it.
        """
        return None

    def make_trainable(self, layer: Any) -> Undo | None:
        """Sees to it that gradients go through the layer, whatever it has computed; returns what ends that."""
        return None

    def compute_in(self, layer: Any, dtype: torch.dtype) -> None:  # noqa: B027  (most follow what ``to`` says)
        """Lets the layer compute in another type."""

    # -- the same for all ----------------------------------------------------------------------------------------------

    def place(self, layer: nn.Module) -> Tensor | None:
        """Returns what stands in the weight's place: a packed tensor, a dense one, or nothing."""
        return layer._parameters.get(self.weight_name)

    def weight(self, layer: nn.Module) -> Tensor:
        """Returns the weight that the layer computes with ``(rows, cols)``, packed or dense."""
        held = self.place(layer)
        return self.unpacked(layer) if self.packs(held) else cast(Tensor, held)

    def product(self, layer: Any, forward: Callable[..., Tensor], x: Tensor) -> Tensor:
        """Computes ``x Wᵀ + b`` of ``x`` ``(..., cols)`` with the weight as it stands."""
        held = self.place(layer)
        if self.packs(held):
            return self.packed_product(layer, forward, x)
        bias = layer._parameters.get("bias")
        return F.linear(x, cast(Tensor, held).to(x.dtype), None if bias is None else bias.to(x.dtype))


PACKINGS: Final[list[Packing]] = []
"""All packings; the files that define them fill it."""


def packing_of(layer: nn.Module) -> Packing | None:
    """Returns how a layer keeps its weight, or None for one that is not quantised.

    Example:
        >>> packing_of(nn.Linear(4, 4)) is None
        True
    """
    return _packing_for(cast(Any, type(layer)), cast(Any, type(layer._parameters.get("weight"))))


@functools.lru_cache(maxsize=1024)
def _packing_for(cls: Any, weight: Any) -> Packing | None:
    return next((packing for packing in PACKINGS if packing.owns(cls, weight)), None)


class Named:
    """Whether a class stands, by module and name, among those that another one is made of; nothing is imported.

    Args:
        module: the beginning of the module's name. name: of the class.

    Example:
        >>> Named("torch.nn.modules", "Linear").among(nn.Bilinear), Named("torch.nn", "Linear").among(nn.Linear)
        (False, True)
    """

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name

    def among(self, cls: type[Any]) -> bool:
        """Says whether it is one of the bases of ``cls``, or ``cls``."""
        return any(one.__qualname__ == self.name and one.__module__.startswith(self.module) for one in cls.__mro__)


class Backend(ABC):
    """One way to quantise a Linear, under the name that a user gives.

    Attributes:
        name: what it is asked for by. says: what it is, as a noun. package: the import name it needs, or "".
        extra: the extra that brings it. packing: how its layers keep their weight.
    """

    name: str
    says: str
    package: ClassVar[str] = ""
    extra: ClassVar[str] = "quant"
    packing: Packing

    @abstractmethod
    def bytes(self, rows: int, cols: int, itemsize: int = 4) -> int:
        """Returns how many bytes a quantised weight takes.

        Args:
            rows, cols: its shape. itemsize: bytes of a number in the type that the layer computes in.
        """

    @abstractmethod
    def layer(self, weight: Tensor, bias: nn.Parameter | None) -> nn.Module:
        """Returns a layer with ``weight`` ``(rows, cols)`` quantised and ``bias`` as it is."""

    @property
    def step(self) -> int:
        """Returns of what the inputs of a layer must be a multiple."""
        return 1

    def check(self, path: str, rows: int, cols: int) -> None:
        """Checks that a layer of that shape can be quantised.

        Raises:
            BadConfig: its inputs do not divide into the blocks of this backend.
        """
        if cols % self.step:
            raise BadConfig(
                f"{self.name} packs {self.step} inputs at a time, which does not divide the {cols} inputs of "
                f"{path}; exclude it, or use another backend"
            )

    def need(self) -> Any:
        """Imports the package.

        Raises:
            MissingPackage: it is not installed; the message names the extra.
        """
        return need(self.package, f"bases in {self.name}", extra=self.extra) if self.package else None


BACKENDS: Final[Registry[Backend]] = Registry("way to quantise")
"""Name -> backend."""


def backend_called(name: str) -> Backend:
    """Returns the backend of that name, after a look at whether its package is there.

    Raises:
        UnknownName: there is none. MissingPackage: its package is not installed.

    Example:
        >>> backend_called("nf5")
        Traceback (most recent call last):
        ...
        studio.errors.UnknownName: no way to quantise is named 'nf5'; did you mean 'nf4'? (known: ...)
    """
    backend = BACKENDS[name]
    backend.need()
    return backend
