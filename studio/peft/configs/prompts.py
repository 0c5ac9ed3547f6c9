"""Virtual tokens: PEFT's configs of prompts and prefixes, and their tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from studio.adapters import Adapter, AdapterConfig
from studio.adapters.sites.language import ModelSite, is_language_model
from studio.adapters.tokens.contract import TokenAdapter, refusal
from studio.errors import UnsupportedLayer
from studio.files.soft import peft_form, soft_config
from studio.files.source import open_source
from studio.peft.terms.errors import Wrong

__all__ = ["note_sizes", "prompt_config", "prompt_state", "sizes_in_file", "source_of", "start_from"]


def prompt_config(config: Any, model: nn.Module) -> AdapterConfig:
    """Makes the studio's config of a prompt or a prefix.

    Raises:
        Wrong: a field that the studio does not implement. UnsupportedLayer: no language model.
    """
    if not config.num_virtual_tokens:
        raise Wrong(
            f"{type(config).__name__}(num_virtual_tokens={config.num_virtual_tokens!r}): give a number, at least 1"
        )
    if not is_language_model(model):
        raise UnsupportedLayer(refusal(model))
    site = ModelSite("", model)
    ours = soft_config(config.to_dict(), encodes_first=site.encodes_first)
    return dataclasses.replace(ours, **config.settings.new(config, {"": site}))


_SOURCES: Final = ("AVERAGE_SOURCE_TASKS", "EXACT_SOURCE_TASK", "ONLY_SOURCE_SHARED")


def source_of(config: Any) -> dict[str, Tensor]:
    """Returns what a multitask prompt starts from where that is another one's file: the prompt, a task's factors.

    Args:
        config: PEFT's. ``prompt_tuning_init`` says which: one task, the mean of all, or the prompt alone.

    Raises:
        Wrong: no file is named, it has no such tensors, or not that task. BadFile: it cannot be read.
    """
    word = getattr(config, "prompt_tuning_init", None)
    word = getattr(word, "value", word)
    if word not in _SOURCES:
        return {}
    if config.prompt_tuning_init_state_dict_path is None:
        raise Wrong(f"prompt_tuning_init_state_dict_path needs to be specified with {word} init method")
    file = Path(config.prompt_tuning_init_state_dict_path)
    held = open_source(file, pickled=True).tensors
    names = {"prompt": "prompt_embeddings", "cols": "prefix_task_cols", "rows": "prefix_task_rows"}
    missing = [theirs for theirs in names.values() if theirs not in held]
    if missing:
        raise Wrong(f"{file} has no {missing[0]!r}: it is no multitask prompt from which {word} could start")
    found = {ours: held[theirs].float() for ours, theirs in names.items()}
    task, count = config.prompt_tuning_init_task, len(found["cols"])
    if word == "EXACT_SOURCE_TASK" and not 0 <= task < count:
        raise Wrong(f"prompt_tuning_init_task={task!r}: {file} has the tasks 0 to {count - 1}")
    if word == "ONLY_SOURCE_SHARED":
        return {"prompt": found["prompt"]}
    chosen = {key: one[task : task + 1] if word == "EXACT_SOURCE_TASK" else one.mean(dim=0, keepdim=True)
              for key, one in found.items() if key != "prompt"}  # fmt: skip
    return {"prompt": found["prompt"], **chosen}


@torch.no_grad()
def start_from(found: Mapping[str, Tensor], adapters: Iterable[tuple[str, Adapter]]) -> None:
    """Copies into a new prompt what :func:`source_of` has found.

    Args:
        found: our names to tensors ``(...)``. adapters: path -> adapter, those of the prompt.

    Raises:
        Wrong: a tensor of another shape.
    """
    for _, adapter in adapters:
        live = adapter.tensors()
        for key, tensor in found.items():
            if live[key].shape != tensor.shape:
                raise Wrong(
                    f"the prompt that this one starts from has {key} {tuple(tensor.shape)}, this one has "
                    f"{tuple(live[key].shape)}: it needs as many tokens and ranks, and num_tasks=1 for one task"
                )
            live[key].copy_(tensor)


def note_sizes(config: Any, adapters: Iterable[tuple[str, Adapter]]) -> None:
    """Writes into a config what PEFT reads off the model: width, heads, layers.

    Args:
        config: PEFT's. adapters: path -> adapter, those of the config.
    """
    for _, adapter in adapters:
        assert isinstance(adapter, TokenAdapter)
        site = adapter.site
        config.token_dim = site.rows
        config.num_attention_heads = int(getattr(site.config, "num_attention_heads", 1))
        config.num_layers = int(getattr(site.config, "num_hidden_layers", 1))
        config.num_transformer_submodules = 2 if getattr(adapter.config, "decoder", False) else 1


def prompt_state(adapters: Iterable[tuple[str, Adapter]], name: str) -> dict[str, Tensor]:
    """Returns an adapter's tensors under PEFT's names.

    Raises:
        Wrong: it has no virtual tokens.
    """
    for _, adapter in adapters:
        assert isinstance(adapter, TokenAdapter)
        return peft_form(adapter)[1]
    raise Wrong(f"{name!r} has no virtual tokens")


def sizes_in_file(adapters: Iterable[Adapter]) -> dict[str, Any]:
    """Returns the fields with which PEFT finds its way in the tensors of a saved prompt or prefix.

    Args:
        adapters: those of one config.

    Raises:
        DoesNotFit: PEFT has no way to say it.
    """
    wanted = ("num_attention_heads", "num_layers", "num_transformer_submodules", "token_dim")
    for adapter in adapters:
        assert isinstance(adapter, TokenAdapter)
        fields = peft_form(adapter)[0]
        return {name: fields[name] for name in wanted}
    return {}
