"""Virtual tokens: PEFT's configs of prompts and prefixes, and their tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from studio.adapters import Adapter, AdapterConfig
from studio.adapters.sites.language import ModelSite, is_language_model
from studio.adapters.tokens.contract import TokenAdapter, refusal
from studio.errors import UnsupportedLayer
from studio.files.soft import peft_form, soft_config
from studio.peft.terms.errors import Wrong

__all__ = ["note_sizes", "prompt_config", "prompt_state", "sizes_in_file"]


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
