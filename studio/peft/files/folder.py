"""The folder of a saved adapter, as ``PeftModel`` writes and reads it."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from studio.atomic import atomic_write
from studio.files.format import FORMATS
from studio.files.header import read_tensors, write_tensors
from studio.files.peft import TENSOR_FILE, peft_fields, warn_doubled
from studio.files.save import spelled
from studio.files.source import open_source
from studio.peft.configs.config import PeftConfig
from studio.peft.configs.prompts import sizes_in_file
from studio.peft.files.tensors import PREFIX, SHARED, adapts_embeddings, get_state
from studio.peft.model.starts import in_pefts_form
from studio.peft.model.state import State
from studio.peft.terms.errors import PeftWarning, refusals
from studio.peft.terms.places import folder_of

__all__ = ["load_peft_weights", "write_folder"]

BIN: Final = "adapter_model.bin"


def write_folder(
    state: State,
    name: str,
    folder: Path,
    *,
    safe: bool,
    embeddings: str | bool,
    plain: bool = False,
    given: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes tensors and config of one adapter.

    Args:
        state: what is on the model. name: which. folder: where to.
        safe: safetensors, else ``torch.save``. embeddings: as in ``PeftModel.save_pretrained``.
        plain: whether a start out of the weights is worked into the pair, of twice the rank, in any case.
        given: values that stand in for the live ones, ``(...)``, under PEFT's names in a model.

    Raises:
        DoesNotFit: an adapter that no folder of PEFT's can hold.
    """
    base: Any = state.model
    if embeddings == "auto":
        embeddings = adapts_embeddings(base, name)
        if embeddings:
            warnings.warn(
                "Setting `save_embedding_layers` to `True` as embedding layers found in `target_modules`.",
                PeftWarning,
                stacklevel=4,
            )
    found = get_state(base, name, embeddings=bool(embeddings), plain=plain, given=given)
    tensors = {key: tensor.detach().contiguous().cpu() for key, tensor in found.items()}
    if safe:
        write_tensors(folder / TENSOR_FILE, tensors, {"format": "pt"})
    else:
        buffer = io.BytesIO()  # a file's name would go into it, and what the disk says come as an error of C++
        torch.save(tensors, buffer)
        atomic_write(folder / BIN, buffer.getvalue())
    config = state.configs[name]
    config.save_pretrained(folder, inference_mode=True, **_about_the_base(base, config), **_settled(state, name, plain))


def _about_the_base(base: Any, config: PeftConfig) -> dict[str, Any]:
    """The fields of a saved config that say which model the adapter is for, where the config itself does not."""
    fields: dict[str, Any] = {}
    if config.base_model_name_or_path is None:
        where = getattr(base, "name_or_path", None) or getattr(getattr(base, "config", None), "_name_or_path", None)
        fields["base_model_name_or_path"] = where
    if config.task_type is None:
        fields["auto_mapping"] = {"base_model_class": type(base).__name__, "parent_library": type(base).__module__}
    return fields


def _settled(state: State, name: str, plain: bool) -> dict[str, Any]:
    """The fields of a saved config that differ from the config in memory, because the tensors say something else."""
    config: Any = state.configs[name]
    if config.is_prompt_learning:
        return sizes_in_file(state.own_layers(name).values())
    if not state.cores(name) or in_pefts_form(state, name):
        return _doubled(config) if plain else {}
    saved, _ = spelled(state.model, name, FORMATS["peft"])
    warn_doubled(saved)
    stated = peft_fields(saved, saved.names.paths[next(iter(saved.sites))][0])
    fields: dict[str, Any] = {}
    start = getattr(config, "init_lora_weights", True)
    begun = any("down0" in adapter.tensors() for adapter in state.own_layers(name).values())
    if begun or (isinstance(start, str) and start not in ("gaussian", "orthogonal", "mica")):
        settled = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules")
        fields = {key: stated[key] for key in settled if key in stated}
        fields |= {"init_lora_weights": True, "eva_config": None, "corda_config": None, "loftq_config": {}}
    if stated.get("rank_pattern") and config.word == "ADALORA":  # ranks that went in training
        fields |= {key: stated[key] for key in ("init_r", "lora_alpha", "rank_pattern")}
    for key in ("decompose_factor", "feedforward_modules", "target_modules"):
        if key in stated and getattr(config, key, None) is None:
            fields[key] = stated[key]
    return fields


def _doubled(config: Any) -> dict[str, Any]:
    """The fields that differ for an adapter whose start is worked into its pairs, all of twice the rank then."""
    more = math.sqrt(2) if config.use_rslora else 2
    fields = {"r": 2 * config.r, "rank_pattern": {key: 2 * one for key, one in config.rank_pattern.items()}}
    fields |= {"lora_alpha": more * config.lora_alpha,
               "alpha_pattern": {key: more * one for key, one in config.alpha_pattern.items()}}  # fmt: skip
    return {**fields, "init_lora_weights": True, "corda_config": None}


def _mapped(key: str, table: Mapping[str, str]) -> str:
    prefix = next((one for one in (PREFIX, SHARED) if key.startswith(one)), "")
    bare = key.removeprefix(prefix)
    hits = (re.subn(pattern, replacement, bare) for pattern, replacement in table.items())
    return prefix + next((made for made, count in hits if count), bare)


def load_peft_weights(
    model_id: str | Path, device: str | None = None, key_mapping: Mapping[str, str] | None = None, **hub: Any
) -> dict[str, Tensor]:
    """Returns the tensors of an adapter's file.

    Args:
        model_id: a folder, or a name on the Hub. device: where to; None: the CPU.
        key_mapping: expression -> replacement, for keys without what all begin with; the first that fits counts.
        hub: subfolder, revision, cache_dir, token.

    Raises:
        BadFile: there is none.
    """
    with refusals():
        folder = folder_of(model_id, hub.pop("subfolder", None), (TENSOR_FILE, BIN), **hub)
        if (folder / TENSOR_FILE).is_file():
            tensors = dict(read_tensors(folder / TENSOR_FILE)[1])
        else:
            tensors = dict(open_source(folder / BIN, pickled=True).tensors)
    if key_mapping:
        tensors = {_mapped(key, key_mapping): tensor for key, tensor in tensors.items()}
    return tensors if device is None else {key: tensor.to(device) for key, tensor in tensors.items()}
