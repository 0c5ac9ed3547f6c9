"""``convert_to_lora``, ``save_as_lora``: an adapter of another method as a LoRA, for programs that read only those."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from studio.files.header import write_tensors
from studio.files.peft import TENSOR_FILE
from studio.peft.files.tensors import PREFIX
from studio.peft.model.converting import NotConvertible, converted
from studio.peft.model.state import KEY, State
from studio.peft.model.tuner import base_of, tuner_of
from studio.peft.terms.errors import refusals

__all__ = ["convert_to_lora", "save_as_lora"]


def convert_to_lora(
    model: nn.Module,
    rank: float,
    adapter_name: str = "default",
    progressbar: bool = False,
    compile_kwargs: dict[str, Any] | None = None,
) -> tuple[Any, dict[str, Tensor]]:
    """Returns the LoRA that comes nearest to an adapter: its config, and its tensors ``(...)`` under PEFT's names.

    Args:
        model: a PEFT model, or a base with adapters (whose keys have no ``base_model.model.`` in front).
        rank: of each layer; a float in (0, 1] is the share of the change's energy (squared singular values) that is
            kept, which gives each layer a rank of its own. The scale is worked in: alpha is the rank.
        adapter_name: which adapter. progressbar: say on stderr how far it is.
        compile_kwargs: accepted for PEFT's sake; nothing is compiled.

    Raises:
        NotConvertible: no adapter, or one on layers or of a method that no LoRA can stand for; a ``TypeError`` too.
        Wrong: another rank than the layers can have, or biases or token rows of the adapter's own, which would be lost.
        Unknown: no adapter has that name.

    Example:
        >>> import torch
        >>> from studio.peft import LoHaConfig, get_peft_model
        >>> model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(8, 8)), LoHaConfig(r=2, target_modules=["0"]))
        >>> config, tensors = convert_to_lora(model, rank=4)
        >>> config.r, sorted(tensors)
        (4, ['base_model.model.0.lora_A.weight', 'base_model.model.0.lora_B.weight'])
    """
    state: State | None = base_of(model).__dict__.get(KEY)
    if state is None:
        raise NotConvertible("Could not detect any layer that supports LoRA conversion: the model carries no adapter")
    prefix = "" if tuner_of(model) is None else PREFIX
    with refusals():
        state.check(adapter_name)
        config, tensors = converted(state, adapter_name, rank, progressbar)
    return config, {prefix + key: tensor for key, tensor in tensors.items()}


def save_as_lora(
    path: str | Path,
    model: nn.Module,
    rank: float,
    adapter_name: str = "default",
    progressbar: bool = False,
    compile_kwargs: dict[str, Any] | None = None,
) -> None:
    """Writes the folder of the LoRA that comes nearest to an adapter.

    Args:
        path: the folder. model, rank, adapter_name, progressbar, compile_kwargs: as in :func:`convert_to_lora`.

    Raises:
        NotConvertible, Wrong, Unknown: as :func:`convert_to_lora`.
    """
    config, tensors = convert_to_lora(model, rank, adapter_name, progressbar, compile_kwargs)
    folder = Path(path)
    config.save_pretrained(folder)
    stored = {key: tensor.detach().contiguous().cpu() for key, tensor in tensors.items()}
    write_tensors(folder / TENSOR_FILE, stored, {"format": "pt"})
