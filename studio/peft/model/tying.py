"""What an adapter has of layers whose weights are one: told of, or tied as well (``ensure_weight_tying``)."""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import Any, Final

from torch import nn

from studio.adapters import Adapter
from studio.adapters.contract.ranked import RankedConfig
from studio.peft.configs.select import tied_group
from studio.peft.model.state import State
from studio.peft.terms.errors import PeftWarning, Wrong

__all__ = ["note_tying", "tie"]

_PARTS: Final = "Model has `tie_word_embeddings=True` and a tied layer is part of the adapter, but "


def note_tying(model: nn.Module, config: Any, paths: Collection[str]) -> None:
    """Says where an adapter is on one of several layers whose weights are one, or where nothing is to be tied.

    Args:
        model: the base. config: PEFT's. paths: the layers and whole modules that the adapter has.
    """
    group = tied_group(model)
    here = sorted(set(group) & set(paths))
    if not getattr(config, "ensure_weight_tying", False):
        if here:
            word = "`ensure_weight_tying` is not set to True" if hasattr(config, "ensure_weight_tying") else \
                   "no implementation exists to tie the adapters"  # fmt: skip
            others = ", ".join(path for path in group if path not in here) or "each other"
            _say(f"{_PARTS}{word}: it acts at {', '.join(here)} alone, and merging parts the weight from {others}")
    elif not group:
        _say(
            "You have requested `ensure_weight_tying`, but no tied modules were found in the model: "
            "ensure_weight_tying=True but the model does not have tied weights"
        )
    elif not here:
        _say(
            "You have requested `ensure_weight_tying`, but no tied modules are added in either `modules_to_save` or "
            "`target_modules`"
        )


def _say(text: str) -> None:
    warnings.warn(text, PeftWarning, stacklevel=7)


def _check_alike(own: Adapter, first: Adapter) -> None:
    scales = [one.config.scale_at(one.site.path) for one in (own, first) if isinstance(one.config, RankedConfig)]
    if "down0" in own.tensors() or len(set(scales)) > 1:
        raise Wrong(
            f"ensure_weight_tying: {own.site.path} is to have the LoRA of {first.site.path}, and "
            f"{'a start out of the weights is each one own' if len(set(scales)) < 2 else 'their scales differ'}; "
            "take the usual start, and one rank and alpha for both"
        )


def tie(state: State, name: str) -> None:
    """Lets an adapter's tensors at tied layers share their memory, as the layers' weights do.

    A LoRA of an output layer is that of the embedding turned round. A saved copy has the embedding's copied weight.

    Args:
        state: what is on the model. name: the adapter.

    Raises:
        Wrong: a start, a rank or an alpha that the layers cannot share.
    """
    group = tied_group(state.model) if getattr(state.configs[name], "ensure_weight_tying", False) else []
    layers, copies = state.own_layers(name), state.extras[name].modules
    ask: Any = getattr(state.model, "get_input_embeddings", None)
    source = next((path for path in group if state.model.get_submodule(path) is ask()), "")
    for path in group:
        if path != source and source in layers and path in layers:
            own, first = layers[path], layers[source]
            _check_alike(own, first)
            pairs = {"down": "down", "up": "up"} if own.site.kind == first.site.kind else {"down": "up", "up": "down"}
            for mine, theirs in pairs.items():
                tensor = first._parameters[theirs]
                assert tensor is not None, "a LoRA has both factors"
                view = tensor.detach() if mine == theirs else tensor.detach().t()
                own._parameters[mine] = nn.Parameter(view, requires_grad=tensor.requires_grad)
        if path != source and source in copies and path in copies:
            copies[path]._parameters["weight"] = copies[source]._parameters["weight"]
