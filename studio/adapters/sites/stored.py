"""Whether a layer stores the weight that it computes with: one that is made anew before each call cannot be adapted."""

from __future__ import annotations

from typing import Final, cast

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from studio.errors import UnsupportedLayer

__all__ = ["check_stored"]

_ENDED_BY: Final = {
    "WeightNorm": "torch.nn.utils.remove_weight_norm(layer)",
    "SpectralNorm": "torch.nn.utils.remove_spectral_norm(layer)",
}
"""Hook of torch's older functions -> what takes it off and keeps the weight."""


def check_stored(path: str, module: nn.Module) -> None:
    """Checks that an ordinary layer keeps its weight and bias as parameters of its own.

    Args:
        path: where it stands, for messages. module: the layer.

    Raises:
        UnsupportedLayer: they are computed (weight_norm, spectral_norm, pruning, any parametrization), or not made yet.
    """
    weight = "in_proj_weight" if isinstance(module, nn.MultiheadAttention) else "weight"
    made = module._modules.get("parametrizations")
    computed = [name for name in (weight, "bias") if made is not None and name in made._modules]
    if weight not in module._parameters and not computed:
        computed = [weight]
    if computed:
        how, remedy = _maker(module, computed[0])
        raise UnsupportedLayer(
            f"{path or 'the model'} computes its {computed[0]} anew before each call ({how}), so there is none that an "
            f"adapter could change: make it a plain one first with {remedy}, or exclude the layer"
        )
    if is_lazy(cast(Tensor, module._parameters[weight])):
        raise UnsupportedLayer(
            f"{path or 'the model'} is a {type(module).__name__} that has no weight before its first call: call the "
            "model once, then attach"
        )


def _maker(module: nn.Module, name: str) -> tuple[str, str]:
    """What computes a tensor of a layer, and what puts an end to that."""
    made = module._modules.get("parametrizations")
    rules = None if made is None else made._modules.get(name)
    if rules is not None:
        kinds = ", ".join(type(rule).__name__.strip("_") for rule in rules.children())
        return kinds, f"torch.nn.utils.parametrize.remove_parametrizations(layer, {name!r})"
    hooks = [type(hook).__name__ for hook in module._forward_pre_hooks.values()]
    known = next((hook for hook in hooks if hook in _ENDED_BY), "")
    if known:
        return known, _ENDED_BY[known]
    if f"{name}_mask" in module._buffers:
        return "pruning", f"torch.nn.utils.prune.remove(layer, {name!r})"
    return ", ".join(hooks) or type(module).__name__, "whatever undoes that"
