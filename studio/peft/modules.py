"""What libraries around PEFT import from it about modules."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn

from studio.device import choose_device
from studio.peft.model.kinds import TrainableTokensWrapper
from studio.peft.model.layers import BaseTunerLayer

__all__ = ["TrainableTokensWrapper", "_get_submodules", "fsdp_auto_wrap_policy", "infer_device", "transpose"]


def _get_submodules(model: nn.Module, key: str) -> tuple[nn.Module, nn.Module, str]:
    """Returns the parent of a module, the module, and its name in the parent."""
    above, _, last = key.rpartition(".")
    return model.get_submodule(above), model.get_submodule(key), last


def infer_device() -> str:
    """Returns the kind of the best device of this machine."""
    return choose_device().type


def transpose(weight: Tensor, fan_in_fan_out: bool) -> Tensor:
    """Returns a weight ``(rows, cols)`` the other way around where a layer stores it so."""
    return weight.T if fan_in_fan_out else weight


def fsdp_auto_wrap_policy(model: nn.Module) -> Any:
    """Returns a policy for FSDP that puts a model's own blocks, and every trained layer, into units of their own."""
    from torch.distributed.fsdp.wrap import _or_policy, lambda_auto_wrap_policy, transformer_auto_wrap_policy

    def trained_leaf(module: nn.Module) -> bool:
        weight = getattr(module, "weight", None)
        return not list(module.children()) and weight is not None and bool(weight.requires_grad)

    names = set(getattr(model, "_no_split_modules", None) or ())
    blocks = {type(module) for module in model.modules() if type(module).__name__ in names}
    blocks = {one for one in blocks if not issubclass(one, BaseTunerLayer)}
    return functools.partial(
        _or_policy,
        policies=[
            functools.partial(lambda_auto_wrap_policy, lambda_fn=trained_leaf),
            functools.partial(transformer_auto_wrap_policy, transformer_layer_cls=blocks),
        ],
    )
