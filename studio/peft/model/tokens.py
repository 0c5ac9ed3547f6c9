"""Token rows trained beside an adapter's layers (``trainable_token_indices``): further adapters of the core."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

from studio.adapters import METHODS, attach
from studio.adapters.contract.pattern import exactly
from studio.peft.configs.select import modules_named, names_in
from studio.peft.model.state import TOKENS, State
from studio.peft.terms.errors import Wrong

__all__ = ["TOKEN_KEY", "add_tokens", "fill_tokens"]

TOKEN_KEY: Final = ".token_adapter.trainable_tokens_delta"
"""What follows an embedding's name in PEFT's files; the rows themselves, whatever the name says."""


def add_tokens(state: State, name: str, config: Any) -> None:
    """Attaches the rows that ``trainable_token_indices`` names.

    Raises:
        Wrong: a list without a name, where the model has no input embedding.
        NoMatchingPeftModuleError: a name that fits nothing.
    """
    groups: dict[tuple[int, ...], list[str]] = {}
    for path, tokens in _token_rows(state.model, config).items():
        groups.setdefault(tokens, []).append(path)
    for index, (tokens, paths) in enumerate(groups.items()):
        ours: Any = METHODS["tokenembedding"]
        attach(state.model, ours(tokens=tokens, targets=(exactly(paths),)), name=f"{name}{TOKENS}{index or ''}")


def _token_rows(model: nn.Module, config: Any) -> dict[str, tuple[int, ...]]:
    """The path of each embedding of which rows are trained, and the rows."""
    wanted = getattr(config, "trainable_token_indices", None)
    if not wanted:
        return {}
    if not isinstance(wanted, Mapping):
        ask = getattr(model, "get_input_embeddings", None)
        own = ask() if callable(ask) else None
        path = next((name for name, module in names_in(model).items() if module is own), None)
        if path is None:
            raise Wrong("trainable_token_indices is a list, and the model has no input embedding; name the embedding: "
                        "trainable_token_indices={'embed_tokens': [...]}")  # fmt: skip
        return {path: tuple(wanted)}
    named = modules_named(model, wanted, "trainable_token_indices")
    return {path: tuple(wanted[name]) for name, paths in named.items() for path in paths}


@torch.no_grad()
def fill_tokens(state: State, name: str, tensors: Mapping[str, Tensor]) -> list[str]:
    """Copies rows into an adapter; returns the embeddings that got none.

    Args:
        state: what is on the model. name: the adapter. tensors: path of an embedding -> rows ``(tokens, dim)``.

    Raises:
        Wrong: rows for an embedding that the adapter does not have, or of another shape.
    """
    live = {path: one.tensors()["rows"] for path, one in state.token_layers(name).items() if "rows" in one.tensors()}
    for path, rows in tensors.items():
        if path not in live:
            raise Wrong(f"the file has token rows for {path}, and trainable_token_indices does not name it")
        if live[path].shape != rows.shape:
            raise Wrong(f"size mismatch for {path}: the file has {tuple(rows.shape)} rows, the config asks for "
                        f"{tuple(live[path].shape)}")  # fmt: skip
        live[path].copy_(rows)
    return sorted(set(live) - set(tensors))
