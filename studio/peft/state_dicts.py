"""The tensors of a PEFT model by name: an adapter's, under PEFT's names, and the base's own."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from studio.peft.files.filling import Keys, set_state
from studio.peft.files.tensors import PREFIX, adapts_embeddings, get_state
from studio.peft.model.state import state_of
from studio.peft.model.tuner import base_of, tuner_of
from studio.peft.terms.errors import Wrong

__all__ = [
    "get_base_model_state_dict",
    "get_peft_model_state_dict",
    "set_base_model_state_dict",
    "set_peft_model_state_dict",
]


def get_peft_model_state_dict(
    model: nn.Module,
    state_dict: Mapping[str, Tensor] | None = None,
    adapter_name: str = "default",
    unwrap_compiled: bool = False,
    save_embedding_layers: str | bool = "auto",
) -> dict[str, Tensor]:
    """Returns an adapter's tensors under PEFT's names.

    Args:
        model: a PEFT model, or a base with adapters (whose keys have no ``base_model.model.`` in front).
        state_dict: tensors ``(...)`` of the whole model under PEFT's names, to take the values from instead of the
            live ones.
        adapter_name: which adapter. unwrap_compiled: accepted; a compiled model is looked into anyway.
        save_embedding_layers: put the base's embeddings beside them; "auto": where the adapter changes them.

    Raises:
        Unknown: no adapter has that name. Wrong: the model carries none.
    """
    base, prefix = base_of(model), "" if tuner_of(model) is None else PREFIX
    state_of(base).check(adapter_name)
    embeddings = adapts_embeddings(base, adapter_name) if save_embedding_layers == "auto" else save_embedding_layers
    return get_state(base, adapter_name, prefix=prefix, embeddings=bool(embeddings), given=state_dict)


def set_peft_model_state_dict(
    model: nn.Module,
    peft_model_state_dict: Mapping[str, Tensor],
    adapter_name: str = "default",
    ignore_mismatched_sizes: bool = False,
    low_cpu_mem_usage: bool = False,
) -> Keys:
    """Copies tensors into an adapter.

    Args:
        model: a PEFT model, or a base with adapters. peft_model_state_dict: PEFT's keys to tensors ``(...)``.
        adapter_name: which adapter. ignore_mismatched_sizes: refused, because a tensor would be left as it is.
        low_cpu_mem_usage: accepted for PEFT's sake.

    Returns:
        The adapter's tensors that got nothing, and the keys that fit nothing.

    Raises:
        Unknown: no adapter has that name. DoesNotFit: a tensor of another shape.
        Wrong: the model carries no adapter, or ``ignore_mismatched_sizes``.
    """
    if ignore_mismatched_sizes:
        raise Wrong("ignore_mismatched_sizes=True would leave tensors out silently; leave them out of the state dict")
    return set_state(base_of(model), peft_model_state_dict, adapter_name)


def get_base_model_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Returns the base's own tensors under the base's own names."""
    found = base_of(model).state_dict()
    return {key: one for key, one in found.items() if not {"adapters", "modules_to_save"} & set(key.split("."))}


def set_base_model_state_dict(model: nn.Module, state_dict: Mapping[str, Tensor], strict: bool = True) -> Keys:
    """Copies tensors into the base, under the base's own names.

    Args:
        model: a PEFT model, or a base. state_dict: the base's names to tensors ``(...)``.
        strict: refuse when names differ.

    Raises:
        Wrong: with ``strict``, a key that is missing or unknown.
    """
    known = get_base_model_state_dict(model)
    missing, unknown = sorted(set(known) - set(state_dict)), sorted(set(state_dict) - set(known))
    if strict and (missing or unknown):
        raise Wrong(f"the state dict lacks {missing[:3]} and has the unknown {unknown[:3]}; pass strict=False to go on")
    given = {key: one for key, one in state_dict.items() if key in known}
    base_of(model).load_state_dict(given, strict=False)
    return Keys(missing, unknown)
