"""bitsandbytes' layers: 8 bits with a scale per row, and NF4 and FP4 with double quantisation.

Two traps of its CPU code are stepped around. In evaluation without gradients, its 4-bit layer repacks the weight for a
kernel that has no backward pass, and from then on no gradient goes through it: :meth:`FourBitPacking.make_trainable`.
Its 8-bit layer rounds its inputs to 8 bits in evaluation: here, and in fp32, it is computed with the weight as it is.
"""

from __future__ import annotations

import copy
import importlib
import logging
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from studio.errors import UnsupportedLayer
from studio.packages import need
from studio.quantization.backend import BACKENDS, PACKINGS, Backend, Held, Named, Packing, Undo
from studio.quantization.product import remade_product

__all__ = ["FourBit", "FourBitPacking", "LLMInt8", "LLMInt8Packing"]

_BLOCK = 64  # weights that share a scale
_NESTED = 256  # scales that share a scale of their own


def _matters(record: logging.LogRecord) -> bool:
    """Whether a remark is worth a line: not the one that a kernel without a backward pass, unused here, is missing."""
    return not record.getMessage().startswith("Failed to load CPU gemm_4bit_forward from kernels-community")


# bitsandbytes makes the remark while it is imported, which diffusers does too, for whatever class it is asked for
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_matters)


def _library(module: str = "bitsandbytes") -> Any:
    return need(module, "these layers", extra="quant")


class FourBitPacking(Packing):
    """``Linear4bit``: NF4 or FP4."""

    says = "bitsandbytes' 4-bit layers"

    def __init__(self) -> None:
        self._class = Named("bitsandbytes.", "Linear4bit")

    def owns(self, cls: type[nn.Module], weight: type[Any]) -> bool:
        return self._class.among(cls)

    def packs(self, weight: Tensor | None) -> bool:
        return type(weight).__name__ == "Params4bit"

    def check(self, path: str, layer: nn.Module) -> None:
        weight: Any = layer._parameters["weight"]
        if self.packs(weight) and not weight.is_meta and _state(layer) is None:
            raise UnsupportedLayer(
                f"{path} is one of {self.says} whose weight is not packed yet, so that it cannot be read: move the "
                "model to its device first, which packs it (model.to('cpu'))"
            )

    def unpacked(self, layer: Any) -> Tensor:
        if layer.weight.is_meta:  # a shape alone
            return torch.empty(self.shape(layer), dtype=layer.compute_dtype, device=layer.weight.device)
        data, state = _unrepacked(layer)
        found: Tensor = _library().functional.dequantize_4bit(data, state)
        return found

    def tensors(self, layer: Any) -> dict[str, Tensor]:
        data, state = _unrepacked(layer)
        numbers = state.as_dict(packed=False)
        parts = {name: part for name, part in numbers.items() if isinstance(part, Tensor)}
        return {"weight": data, **({"nested_offset": state.offset} if state.nested else {}), **parts}

    def repacked(self, layer: Any, weight: Tensor) -> list[Held]:
        old = layer.weight
        made = _library().nn.Params4bit(
            weight.to(_state(layer).dtype), requires_grad=False, blocksize=old.blocksize, quant_type=old.quant_type,
            compress_statistics=old.compress_statistics, quant_storage=old.quant_storage,
        )  # fmt: skip
        made = made.to(old.device)
        return [Held("_parameters", "weight", made), Held("__dict__", "quant_state", made.quant_state)]

    def compute_in(self, layer: Any, dtype: torch.dtype) -> None:
        layer.compute_dtype = dtype

    def remade(self, weight: Any, make: Callable[[Tensor], Tensor]) -> Tensor | None:
        state = weight.quant_state
        if type(weight).__name__ != "Params4bit" or getattr(state, "packing_format_for_cpu", False):
            return None
        made: Tensor = copy.copy(weight)
        made.data, cast(Any, made).quant_state = make(weight.data), _state_of(state, make)
        return made

    def make_trainable(self, layer: Any) -> Undo | None:
        flag, place, state = layer.support_avx512bf16_for_cpu, layer.weight, _state(layer)
        repacked = bool(getattr(state, "packing_format_for_cpu", False))
        if not flag and not repacked:
            return None
        before, own = place.data, copy.copy(state)
        if repacked:
            place.data, place.quant_state = _unrepacked(layer)
            layer.quant_state = place.quant_state
        layer.support_avx512bf16_for_cpu = False

        def undo() -> None:
            layer.support_avx512bf16_for_cpu = flag
            if repacked:
                place.data, place.quant_state = before, own
                layer.quant_state = own

        return undo


def _state(layer: Any) -> Any:
    """The numbers that go with the codes; FSDP leaves them at the layer alone."""
    found = getattr(layer.weight, "quant_state", None)
    return layer.quant_state if found is None else found


def _state_of(state: Any, make: Callable[[Tensor], Tensor]) -> Any:
    """The numbers that go with the codes, with other tensors in their places."""
    made = copy.copy(state)
    for name in ("absmax", "code", "offset"):
        if isinstance(getattr(state, name), Tensor):
            setattr(made, name, make(getattr(state, name)))
    made.state2 = None if state.state2 is None else _state_of(state.state2, make)
    return made


def _unrepacked(layer: Any) -> tuple[Tensor, Any]:
    """The codes and their numbers in bitsandbytes' usual order, whatever its CPU kernel has made of them."""
    data, state = layer.weight.data, _state(layer)
    if not getattr(state, "packing_format_for_cpu", False):
        return data, state
    functional = _library("bitsandbytes.functional")
    codes, found = functional._convert_weight_packed_for_cpu_inverse(data, copy.copy(state))
    return codes, found


class LLMInt8Packing(Packing):
    """``Linear8bitLt`` with packed weights."""

    says = "bitsandbytes' 8-bit layers"
    fetched = False  # codes and scales move to a state of the layer at its first call

    def __init__(self) -> None:
        self._class = Named("bitsandbytes.", "Linear8bitLt")

    def owns(self, cls: type[nn.Module], weight: type[Any]) -> bool:
        return self._class.among(cls)

    def packs(self, weight: Tensor | None) -> bool:
        return weight is not None and weight.dtype == torch.int8

    def unpacked(self, layer: Any) -> Tensor:
        codes, scales = _codes(layer)
        found = codes.float().mul_(scales.float()[:, None]).div_(127)
        return found if layer.bias is None else found.to(layer.bias.dtype)

    def tensors(self, layer: Any) -> dict[str, Tensor]:
        codes, scales = _codes(layer)
        return {"weight": codes, "SCB": scales}

    def packed_product(self, layer: Any, forward: Callable[..., Tensor], x: Tensor) -> Tensor:
        if x.device.type == "cpu" or x.dtype == torch.float32:
            return remade_product(x, lambda: self.unpacked(layer), layer.bias)
        return forward(layer, x)

    def repacked(self, layer: Any, weight: Tensor) -> list[Held]:
        device = layer.weight.device
        made = _library().nn.Int8Params(weight.cpu(), has_fp16_weights=False, requires_grad=False).to(device)
        state = copy.copy(layer.state)
        state.CB = state.SCB = None
        return [Held("_parameters", "weight", made), Held("__dict__", "state", state)]


def _codes(layer: Any) -> tuple[Tensor, Tensor]:
    """The codes and the rows' scales, which move to the layer's state at its first call."""
    weight, state = layer.weight, layer.state
    codes = weight.CB if weight.CB is not None else state.CB
    scales = weight.SCB if weight.SCB is not None else state.SCB
    return weight.data if codes is None else codes, scales


class FourBit(Backend):
    """NF4 or FP4 in blocks of 64, whose scales are quantised to 8 bits in blocks of 256.

    Args:
        kind: ``"nf4"`` or ``"fp4"``.

    References:
        QLoRA: Efficient Finetuning of Quantized LLMs (Dettmers et al., 2023), https://arxiv.org/abs/2305.14314
    """

    package = "bitsandbytes"

    def __init__(self, kind: str) -> None:
        self.name, self.packing = kind, FOUR_BIT
        self.says = f"bitsandbytes' {kind.upper()}, double quantisation"

    def bytes(self, rows: int, cols: int, itemsize: int = 4) -> int:
        count = rows * cols
        scales = -(-count // _BLOCK)
        # codes, scales of 8 bits, their own scales, the codes' values, the scales' values, the mean of the scales
        return -(-count // 2) + scales + 4 * -(-scales // _NESTED) + 4 * 16 + 4 * 256 + 4

    def layer(self, weight: Tensor, bias: nn.Parameter | None) -> nn.Module:
        library = self.need()
        made = library.nn.Linear4bit(
            1, 1, bias=False, compute_dtype=weight.dtype, quant_type=self.name, device=torch.device("meta")
        )
        made.out_features, made.in_features = weight.shape
        made.weight = library.nn.Params4bit(
            weight.detach(), requires_grad=False, compress_statistics=True, quant_type=self.name, module=made
        ).to(weight.device)
        made.bias = bias
        made.support_avx512bf16_for_cpu = False
        return _as_module(made)


class LLMInt8(Backend):
    """8 bits with a scale per row.

    References:
        LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale (Dettmers et al., 2022),
        https://arxiv.org/abs/2208.07339
    """

    name = "int8"
    says = "bitsandbytes' 8 bits"
    package = "bitsandbytes"

    def __init__(self) -> None:
        self.packing = LLM_INT8

    def bytes(self, rows: int, cols: int, itemsize: int = 4) -> int:
        return rows * cols + 4 * rows

    def layer(self, weight: Tensor, bias: nn.Parameter | None) -> nn.Module:
        library = self.need()
        exact = importlib.import_module("studio.quantization.int8_layer").ExactLinear8bit
        made = exact(1, 1, bias=False, has_fp16_weights=False, device=torch.device("meta"))
        made.out_features, made.in_features = weight.shape
        own = library.nn.Int8Params(weight.detach().cpu(), has_fp16_weights=False, requires_grad=False)
        made.weight, made.bias = own.to(weight.device), bias
        return _as_module(made)


def _as_module(layer: Any) -> nn.Module:
    found: nn.Module = layer
    return found


FOUR_BIT, LLM_INT8 = FourBitPacking(), LLMInt8Packing()
PACKINGS.extend([FOUR_BIT, LLM_INT8])
for _backend in (FourBit("nf4"), FourBit("fp4"), LLMInt8()):
    BACKENDS.add(_backend.name, _backend)
