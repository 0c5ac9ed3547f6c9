"""How transformers reads an adapter's file straight into a model: PEFT's keys -> the core's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from studio.adapters import METHODS
from studio.peft.configs.translate import method_of
from studio.peft.terms.errors import Wrong

__all__ = ["build_peft_weight_mapping"]


def build_peft_weight_mapping(
    weight_conversions: Sequence[Any] | None, adapter_name: str, peft_config: Any = None
) -> list[Any]:
    """Returns the renamings that bring the keys of a file to the names of the model's own tensors.

    Args:
        weight_conversions: the base's own, of which the renamings are kept (the others are of its whole weights).
        adapter_name: the adapter that is read. peft_config: its config.

    Raises:
        Wrong: no config, or a method whose tensors are stored in another shape than the model has.
    """
    from transformers.core_model_loading import WeightRenaming

    if peft_config is None:
        raise Wrong("build_peft_weight_mapping needs peft_config, which says of which method the file is")
    adapter = METHODS[method_of(peft_config)].adapter
    if adapter.peft.shared or adapter.either is not None:
        raise Wrong(f"transformers cannot read {adapter.peft.type} by itself; use PeftModel.from_pretrained")
    renamings = [WeightRenaming("base_model.model.", "")]
    for table in (adapter.peft.tensors, adapter.peft.embedding):
        renamings += [
            WeightRenaming(rf"\.{re.escape(theirs)}$", f".adapters.{adapter_name}.{ours}")
            for ours, theirs in table.items()
        ]
    return renamings + [one for one in weight_conversions or () if isinstance(one, WeightRenaming)]
