"""What PEFT says of the packages that are installed: ``peft.import_utils``."""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackageNotFoundError, version
from typing import Any

__all__ = ["is_diffusers_available"]

_PACKAGES = {
    "aqlm": "aqlm",
    "bnb": "bitsandbytes",
    "bnb_4bit": "bitsandbytes",
    "diffusers": "diffusers",
    "eetq": "eetq",
    "gptqmodel": "gptqmodel",
    "hqq": "hqq",
    "inc": "neural_compressor",
    "optimum": "optimum",
    "te": "transformer_engine",
    "te_pytorch": "transformer_engine",
    "torch_tpu": "torch_xla",
    "torchao": "torchao",
    "torchao_ge_v0_18_0": "torchao",
}


def is_diffusers_available() -> bool:
    """Whether diffusers is installed; ``is_bnb_available`` and the like are made the same way."""
    return importlib.util.find_spec("diffusers") is not None


def _at_least(name: str) -> bool:
    """Whether transformers is of at least, or at most, the version in a name like ``is_transformers_ge_v5_1_0``."""
    _, how, number = name.rsplit("is_transformers", 1)[1].split("_", 2)
    wanted = tuple(int(part) for part in number.lstrip("v").split("_"))
    try:
        have = tuple(int(part) for part in version("transformers").split(".")[:3] if part.isdigit())
    except PackageNotFoundError:
        return False
    return have >= wanted if how == "ge" else have[: len(wanted)] <= wanted


def __getattr__(name: str) -> Any:
    package = _PACKAGES.get(name.removeprefix("is_").removesuffix("_available"))
    if package is not None:
        return lambda *args, **kwargs: importlib.util.find_spec(package) is not None
    if name.startswith("is_") and name.endswith("_available"):  # a kind of device
        from studio.device import choose_device

        return lambda *args, **kwargs: choose_device().type == name.split("_")[1]
    if name.startswith("is_transformers_"):
        return _at_least(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
