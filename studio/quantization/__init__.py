"""Weights in fewer bits: how a layer keeps them (packings), the ways to quantise one (backends), and which layers are.

A packing knows the layers of one library: which are its own, how their weight is read, what they compute, how a weight
is packed anew. A backend is a packing with its settings, under the name that a user gives: ``"nf4"``, ``"int8"``.
"""

from __future__ import annotations

from studio.quantization.backend import BACKENDS, Backend, Packing, backend_called, packing_of
from studio.quantization.bnb import FourBit, FourBitPacking, LLMInt8, LLMInt8Packing
from studio.quantization.gguf import GGUF, GGUFPacking
from studio.quantization.own import OwnGrid, OwnPacking
from studio.quantization.quanto import Quanto, QuantoPacking
from studio.quantization.scaled import ScaledFloat8, ScaledPacking
from studio.quantization.torchao import Torchao, TorchaoPacking

__all__ = [
    "BACKENDS",
    "GGUF",
    "Backend",
    "FourBit",
    "FourBitPacking",
    "GGUFPacking",
    "LLMInt8",
    "LLMInt8Packing",
    "OwnGrid",
    "OwnPacking",
    "Packing",
    "Quanto",
    "QuantoPacking",
    "ScaledFloat8",
    "ScaledPacking",
    "Torchao",
    "TorchaoPacking",
    "backend_called",
    "packing_of",
]
