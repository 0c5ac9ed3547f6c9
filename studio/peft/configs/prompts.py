"""Virtual tokens: PEFT's configs of prompts and prefixes, and their tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from studio.adapters import Adapter, AdapterConfig
from studio.adapters.sites.language import ModelSite, is_language_model
from studio.adapters.tokens.contract import TokenAdapter, refusal, text_tokens
from studio.errors import UnsupportedLayer
from studio.files.soft import peft_form, soft_config
from studio.peft.terms.errors import Wrong

__all__ = ["note_sizes", "prompt_config", "prompt_state"]


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
    ours: Any = soft_config(config.to_dict(), encodes_first=ModelSite("", model).encodes_first)
    fields: dict[str, Any] = {}
    if config.word == "PREFIX_TUNING":
        if config.prefix_projection:
            fields["hidden"] = config.encoder_hidden_size or ModelSite("", model).rows
        if config.init_weights is not None:
            fields["init"] = config.init_weights
    elif hasattr(config, "prompt_tuning_init"):
        fields = _start(config, model)
    elif config.encoder_dropout and ours.encoder == "mlp":
        raise Wrong("encoder_dropout is for the LSTM encoder; PEFT leaves it out of the MLP silently")
    return dataclasses.replace(ours, **fields)


def _start(config: Any, model: nn.Module) -> dict[str, Any]:
    word = getattr(config.prompt_tuning_init, "value", config.prompt_tuning_init)
    if word == "RANDOM":
        return {}
    if word == "SAMPLE_VOCAB":
        return {"init": "vocabulary"}
    if word == "TEXT":
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(config.tokenizer_name_or_path, **(config.tokenizer_kwargs or {}))
        return {"init": "text", "start_tokens": text_tokens(config.prompt_tuning_init_text, tokenizer)}
    raise Wrong(f"prompt_tuning_init={word!r} starts from another task's file; load that adapter instead")


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
