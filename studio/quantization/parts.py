"""Quantising the components of a base that is being opened."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import nn

from studio.errors import BadConfig, DoesNotFit, UnknownName, nearest
from studio.quantization.backend import BACKENDS
from studio.quantization.counting import packed_layers
from studio.quantization.layers import matrix_of, quantizable, quantize_layers, whole_error
from studio.quantization.memory import let_files_go

__all__ = ["QuantizedPart", "by_component", "quantize_part"]


@dataclass(frozen=True)
class QuantizedPart:
    """What was done to a component.

    Attributes:
        backend: how. layers: how many. kept: Linears that the backend cannot divide.
        before, after: bytes of the weights. error: ``‖W − Q‖ / ‖W‖`` over them.
    """

    backend: str
    layers: int
    kept: tuple[str, ...]
    before: int
    after: int
    error: float

    def __str__(self) -> str:
        kept = f", {len(self.kept)} kept whose shape does not divide ({self.kept[0]}, ...)" if self.kept else ""
        return (
            f"{self.layers} layers in {self.backend}{kept}: {self.before / 1e6:,.1f} MB -> {self.after / 1e6:,.1f} MB, "
            f"relative error {self.error:.4f}"
        )


def by_component(wishes: Mapping[str, str], there: Collection[str], denoiser: str) -> dict[str, str]:
    """Returns wishes by the components that they mean.

    Args:
        wishes: as :func:`~studio.quantization.wishes.read_wishes` gives them, where ``""`` is the denoiser.
        there: the components of the base; a language model is ``""`` alone. denoiser: which of them it is.

    Raises:
        UnknownName: the base has none of that name. BadConfig: the denoiser is meant twice.

    Example:
        >>> by_component({"": "nf4", "vae": "fp8"}, ("unet", "vae"), "unet")
        {'unet': 'nf4', 'vae': 'fp8'}
    """
    found: dict[str, str] = {}
    for part, how in wishes.items():
        name = part or denoiser
        if name not in there:
            if list(there) == [""]:
                raise UnknownName(f"{name!r} names a component, and the model has none: say how alone, as in 'nf4'")
            close = nearest(name, list(there), 1)
            raise UnknownName(
                f"no component of the base is called {name!r}; did you mean {close[0]!r}? (it has {', '.join(there)})"
            )
        if name in found:
            raise BadConfig(f"{name} is the denoiser, which is quantised as {found[name]!r} and as {how!r}: say one")
        found[name] = how
    return found


def quantize_part(what: str, root: nn.Module, name: str) -> QuantizedPart:
    """Quantises a component in place, layer by layer.

    Args:
        what: what it is called in messages. root: the component. name: of the backend.

    Raises:
        DoesNotFit: it is quantised already, or has no layers that could be.
    """
    backend, found = BACKENDS[name], quantizable(root)
    taken = {path: one for path, one in found.items() if matrix_of(one).shape[1] % backend.step == 0}
    if not taken:
        there = next(packed_layers(root), None)
        why = (
            f"is quantised already ({there[0]} is one of {there[2].says})" if there is not None
            else f"has no Linear layers that {name} can divide" if found
            else "has no Linear layers"
        )  # fmt: skip
        raise DoesNotFit(f"{what} {why}, so it cannot be quantised as {name!r}: leave it out")
    kept = tuple(path for path in found if path not in taken)
    del found
    let_files_go(root, taken.values())
    done = quantize_layers(root, taken, backend)
    return QuantizedPart(
        name, len(done), kept, sum(one.before for one in done), sum(one.after for one in done), whole_error(done)
    )
