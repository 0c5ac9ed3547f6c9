"""A small model whose layers are kept in few bits, in every way to quantise."""

from __future__ import annotations

import importlib.util
import warnings

import pytest
import torch
from torch import Tensor, nn

import studio
from studio.quantization import BACKENDS, packing_of

CHEAP = ("grid4", "fp8", "nf4", "int8", "torchao-int8", "quanto-int8", "gguf-q8-0")
"""One of each packing."""


def prepare(name: str) -> None:
    """Imports a backend's package, which may warn, or skips."""
    package = BACKENDS[name].package
    if package and importlib.util.find_spec(package.partition(".")[0]) is None:
        pytest.skip(f"{package} is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if package:
            BACKENDS[name].need()


def wide(seed: int = 0) -> nn.Sequential:
    """Two layers, with a bias and without, whose inputs every block divides."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 32, bias=False))


def quantized(name: str, seed: int = 0) -> nn.Sequential:
    """The model, quantised."""
    prepare(name)
    model = wide(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        studio.quantize(model, name)
    return model


def dense(model: nn.Sequential) -> nn.Sequential:
    """The same function in torch's own layers."""
    plain = wide()
    with torch.no_grad():
        for index in (0, 2):
            packing = packing_of(model[index])
            assert packing is not None
            plain[index].weight.copy_(packing.unpacked(model[index]))
        plain[0].bias.copy_(model[0].bias)
    return plain


def packed_bytes(model: nn.Sequential) -> dict[str, Tensor]:
    """Every tensor that the packed weights are made of, as bytes, and the biases."""
    found = {}
    for index in (0, 2):
        packing = packing_of(model[index])
        assert packing is not None
        for key, tensor in packing.tensors(model[index]).items():
            found[f"{index}.{key}"] = tensor.detach().clone().contiguous().view(-1).view(torch.uint8)
    found["bias"] = model[0].bias.detach().clone()
    return found
