"""Which layers of a model are quantised, and putting quantised ones in their place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from studio.errors import DoesNotFit
from studio.mapped import let_pages_go
from studio.quantization.backend import Backend, Named, packing_of
from studio.quantization.memory import give_back

__all__ = [
    "Quantized",
    "in_dense_layers",
    "matrix_of",
    "quantizable",
    "quantize_layer",
    "quantize_layers",
    "replace_layer",
    "whole_error",
]


_ROWS: Final = 64  # rows whose error is taken at a time: they stay in the processor's cache
_BETWEEN: Final = 8  # layers between two times that freed memory is given back
_GPT2: Final = Named("transformers.pytorch_utils", "Conv1D")


@dataclass(frozen=True)
class Quantized:
    """A quantised layer beside what it stands for.

    Attributes:
        path: where it is. before, after: bytes of its weight. off, norm: ``‖W − Q‖²`` and ``‖W‖²``.
    """

    path: str
    before: int
    after: int
    off: float
    norm: float


def quantizable(root: nn.Module) -> dict[str, nn.Module]:
    """Returns the layers that are quantised where nobody names any: path -> layer.

    They are all Linears (and GPT-2's ``Conv1D``), but for the model's head, those whose weight another module holds or
    reads, and those that the model's class keeps in fp32.

    Example:
        >>> net = nn.ModuleDict({"a": nn.Linear(4, 4), "n": nn.LayerNorm(4), "m": nn.MultiheadAttention(4, 1)})
        >>> list(quantizable(net))
        ['a']
    """
    holders: dict[int, int] = {}
    for module in root.modules():
        for held in module._parameters.values():
            if held is not None:
                holders[id(held)] = holders.get(id(held), 0) + 1
    apart = set(map(id, _heads(root)))
    exact = set(getattr(type(root), "_keep_in_fp32_modules", None) or ())
    return {
        path: module
        for path, module in root.named_modules()
        if path and _is_plain(module) and id(module) not in apart and holders[id(module._parameters["weight"])] == 1
        and not exact & set(path.split("."))
    }  # fmt: skip


def _is_plain(module: nn.Module) -> bool:
    """Whether a module is a Linear that is called, and computes what torch's does."""
    apart = isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
    plain = isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
    plain = plain or _GPT2.among(type(module))
    return plain and not apart and packing_of(module) is None and "weight" in module._parameters


def _heads(root: Any) -> Iterator[nn.Module]:
    """The projections that make the model's result, as transformers names them."""
    ask = getattr(type(root), "get_output_embeddings", None)
    found = None if ask is None else ask(root)
    if found is not None:
        yield found
    body = getattr(type(root), "base_model_prefix", "")
    if found is None and body in root._modules:  # a classifier: what stands beside its body maps states to labels
        yield from (part for name, beside in root.named_children() if name != body for part in beside.modules())


def matrix_of(layer: nn.Module) -> Tensor:
    """Returns the weight of a layer as ``(rows, cols)``; GPT-2's stores the transpose."""
    weight = cast(Tensor, layer._parameters["weight"]).detach()
    return weight.t() if _GPT2.among(type(layer)) else weight


@torch.no_grad()
def quantize_layer(
    path: str, layer: nn.Module, backend: Backend, rounded: Callable[[Tensor], Tensor] | None = None
) -> tuple[nn.Module, Quantized]:
    """Returns a quantised layer for a Linear, and what that cost.

    Args:
        path: where it is. layer: the Linear. backend: how.
        rounded: what of the weight ``(rows, cols)`` is packed; None: all of it.

    Raises:
        BadConfig: its shape does not divide.
        DoesNotFit: its weight has no values.
    """
    weight = matrix_of(layer)
    backend.check(path, *weight.shape)
    if weight.is_meta:
        raise DoesNotFit(f"{path} is offloaded or on the meta device: quantise a base whose weights are at hand")
    given = weight.contiguous() if rounded is None else rounded(weight.contiguous())
    made = backend.layer(given, layer._parameters.get("bias")).train(layer.training)
    packing = backend.packing
    after = sum(part.nbytes for part in packing.tensors(made).values())
    return made, Quantized(path, weight.nbytes, after, *_off(weight, packing.unpacked(made)))


def _off(exact: Tensor, packed: Tensor) -> tuple[float, float]:
    """``‖W − Q‖²`` and ``‖W‖²``, some rows at a time, so that no copy in fp32 is made of the whole."""
    off = norm = 0.0
    for wanted, given in zip(exact.split(_ROWS), packed.split(_ROWS), strict=True):
        off += float((wanted.float() - given.float()).square().sum())
        norm += float(wanted.float().square().sum())
    return off, norm


def quantize_layers(
    root: nn.Module, layers: dict[str, nn.Module], backend: Backend,
    rounded: Callable[[Tensor], Tensor] | None = None,
) -> list[Quantized]:  # fmt: skip
    """Quantises layers of a model in place, one by one, so that each weight is gone before the next one is packed.

    Args:
        root: the model. layers: path -> layer; it is emptied. backend: how. rounded: see :func:`quantize_layer`.

    Raises:
        BadConfig: a shape that does not divide; nothing is changed then.
    """
    for path, layer in layers.items():
        backend.check(path, *matrix_of(layer).shape)
    done = []
    while layers:
        path = next(iter(layers))
        layer = layers.pop(path)
        made, cost = quantize_layer(path, layer, backend, rounded)
        replace_layer(root, path, made)
        let_pages_go(matrix_of(layer))
        done.append(cost)
        if len(done) % _BETWEEN == 0:
            give_back()
    return done


def replace_layer(root: nn.Module, path: str, layer: nn.Module) -> None:
    """Puts a layer in the place of another one."""
    above, _, last = path.rpartition(".")
    root.get_submodule(above)._modules[last] = layer


@contextmanager
def in_dense_layers(roots: Iterable[nn.Module]) -> Iterator[None]:
    """Lets torch's own Linears stand in the place of quantised layers for a while, so that models are saved as others
    are: each with the weight that the quantised one computes with, a baked one included.

    Args:
        roots: the models.
    """
    put_away: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for root in roots:
            for path, layer in list(root.named_modules()):
                packing = packing_of(layer)
                if packing is not None and path:
                    above, _, last = path.rpartition(".")
                    parent = root.get_submodule(above)
                    parent._modules[last] = _dense(packing.weight(layer), layer._parameters.get("bias"))
                    put_away.append((parent, last, layer))
        yield
    finally:
        for parent, last, layer in put_away:
            parent._modules[last] = layer


def _dense(weight: Tensor, bias: nn.Parameter | None) -> nn.Linear:
    made = nn.Linear(1, 1, bias=False, device=torch.device("meta"))
    made.out_features, made.in_features = weight.shape
    made.weight = nn.Parameter(weight.detach(), requires_grad=False)
    made.bias = cast(nn.Parameter, None if bias is None else nn.Parameter(bias.detach().to(weight.dtype), False))
    return made


def whole_error(done: list[Quantized]) -> float:
    """Returns ``‖W − Q‖ / ‖W‖`` over several layers."""
    norm = sum(one.norm for one in done)
    return (sum(one.off for one in done) / norm) ** 0.5 if norm else 0.0
