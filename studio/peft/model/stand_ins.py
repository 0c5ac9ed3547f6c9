"""Parameters of an adapter that stand in for the base's own while it acts: its biases (``bias="all"``), embeddings."""

from __future__ import annotations

import warnings
from typing import Any, Final, cast

from torch import Tensor, nn

from studio.adapters.hosting.host import is_hosted
from studio.adapters.sites.read import module_at
from studio.peft.configs.select import names_in
from studio.peft.model.state import State
from studio.peft.terms.errors import PeftWarning, Wrong

__all__ = ["give_biases", "give_parameter", "put_parameter", "swap"]

_WORDS: Final = ("none", "all")


class NoSuchBias(Wrong, NotImplementedError):
    """A word that names no biases; a ``NotImplementedError`` too, which is what PEFT raises."""


def give_biases(state: State, name: str, config: Any) -> None:
    """Gives an adapter biases of its own, where its config asks for them.

    Raises:
        Wrong: an unknown word.
    """
    word = getattr(config, "bias", "none")
    if word == "none":
        return
    if word not in _WORDS and not word.endswith("_only"):
        raise NoSuchBias(
            f"Requested bias: {word}, is not implemented. (bias={word!r} must be 'none', 'all' or '<method>_only')"
        )
    found = state.extras[name].parameters
    for path, module in names_in(state.model).items():
        bias = module._parameters.get("bias")
        if bias is not None and (word == "all" or is_hosted(module)):
            found[f"{path}.bias"] = nn.Parameter(bias.detach().clone())
    if not found:
        warnings.warn(f"bias={word!r}: no layer that it names has a bias, none is trained", PeftWarning, stacklevel=8)


def give_parameter(state: State, name: str, path: str, tensor: Tensor) -> None:
    """Gives an adapter a parameter that stands in for the base's from now on, under all names that the base's has.

    Args:
        state: what is on the model. name: the adapter. path: the parameter. tensor: its values, ``(...)``.
    """
    found = state.extras[name].parameters
    own = {**dict(state.model.named_parameters(remove_duplicate=False)), **state.originals}
    made = nn.Parameter(tensor.detach().to(own[path], copy=True), requires_grad=False)
    found |= {other: made for other, parameter in own.items() if parameter is own[path]}


def swap(state: State) -> None:
    """Puts the parameters of the adapters that act in the base's place, and the base's own back in all others."""
    for path, original in state.originals.items():
        put_parameter(state.model, path, original)
    state.originals = {}
    for name in state.active:
        for path, parameter in state.extras[name].parameters.items() if name in state.extras else ():
            module, _, last = path.rpartition(".")
            if not state.disabled_at(module):
                state.originals[path] = cast(nn.Parameter, _holder(state.model, module)[last])
                put_parameter(state.model, path, parameter)


def put_parameter(model: nn.Module, path: str, parameter: nn.Parameter) -> None:
    """Puts a parameter in the place of the one at ``path``.

    Args:
        model: the base. path: the module's path and the parameter's name. parameter: of the same shape, ``(...)``.
    """
    above, _, last = path.rpartition(".")
    _holder(model, above)[last] = parameter


def _holder(model: nn.Module, path: str) -> dict[str, nn.Parameter | None]:
    return cast(nn.Module, module_at(model, path))._parameters
