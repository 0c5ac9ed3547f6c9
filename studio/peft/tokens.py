"""Token rows trained beside an adapter's layers (``trainable_token_indices``): further adapters of the core."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from studio.adapters import METHODS, attach
from studio.peft.configs.select import modules_named, names_in
from studio.peft.configs.translate import exactly
from studio.peft.kinds import Wrong

if TYPE_CHECKING:
    from studio.peft.injection import Injection

__all__ = ["TOKENS", "TOKEN_KEY", "add_tokens", "fill_tokens"]

TOKENS: Final = "--tokens"
"""What follows an adapter's name in the names of the core's adapters that have its token rows."""

TOKEN_KEY: Final = ".token_adapter.trainable_tokens_delta"
"""What follows an embedding's name in PEFT's files; the rows themselves, whatever the name says."""


def token_rows(model: nn.Module, config: Any) -> dict[str, tuple[int, ...]]:
    """Returns the path of each embedding of which rows are trained, and the rows.

    Raises:
        Wrong: a list without a name, where the model has no input embedding. NoTargets: a name that fits nothing.
    """
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
    found: dict[str, tuple[int, ...]] = {}
    for name, paths in modules_named(model, wanted, "trainable_token_indices").items():
        found |= {path: tuple(wanted[name]) for path in paths}
    return found


def add_tokens(injection: Injection, name: str, config: Any) -> None:
    """Attaches the rows that ``trainable_token_indices`` names."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for path, tokens in token_rows(injection.model, config).items():
        groups.setdefault(tokens, []).append(path)
    for index, (tokens, paths) in enumerate(groups.items()):
        ours: Any = METHODS["tokenembedding"]
        whole = f"{name}{TOKENS}{index or ''}"
        attach(injection.model, ours(tokens=tokens, targets=(exactly(paths),)), name=whole)


@torch.no_grad()
def fill_tokens(injection: Injection, name: str, tensors: Mapping[str, Tensor]) -> list[str]:
    """Copies rows into the adapter; returns the embeddings that got none.

    Args:
        injection: what is on the model. name: the adapter. tensors: path of an embedding -> rows.

    Raises:
        Wrong: rows for an embedding that the adapter does not have, or of another shape.
    """
    live = {
        path: adapter.tensors()["rows"]
        for core in injection.cores(name)
        if core != name
        for path, adapter in injection.layers_of(core)
        if "rows" in adapter.tensors()
    }
    for path, rows in tensors.items():
        if path not in live:
            raise Wrong(f"the file has token rows for {path}, and trainable_token_indices does not name it")
        if live[path].shape != rows.shape:
            raise Wrong(f"size mismatch for {path}: the file has {tuple(rows.shape)} rows, the config asks for "
                        f"{tuple(live[path].shape)}")  # fmt: skip
        live[path].copy_(rows)
    return sorted(set(live) - set(tensors))
