"""Token rows trained beside an adapter's layers (``trainable_token_indices``): further adapters of the core."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Final, cast

from torch import Tensor, nn

from studio.adapters import METHODS, attach
from studio.adapters.contract.pattern import exactly
from studio.peft.configs.select import modules_named, names_in, tied_with_embedding
from studio.peft.model.state import TOKENS, State
from studio.peft.terms.errors import PeftWarning, Wrong

__all__ = ["TOKEN_KEY", "add_tokens", "token_tensors"]

TOKEN_KEY: Final = ".token_adapter.trainable_tokens_delta"
"""What follows an embedding's name in PEFT's files; the rows themselves, whatever the name says."""


def add_tokens(state: State, name: str, config: Any) -> None:
    """Attaches the rows that ``trainable_token_indices`` names.

    Raises:
        Wrong: a list without a name, where the model has no input embedding.
        NoMatchingPeftModuleError: a name that fits nothing.
    """
    if getattr(config, "ensure_weight_tying", False):
        _check_tying(state, name, config)
    groups: dict[tuple[int, ...], list[str]] = {}
    for path, tokens in _token_rows(state.model, config).items():
        groups.setdefault(tokens, []).append(path)
    for index, (tokens, paths) in enumerate(groups.items()):
        ours: Any = METHODS["tokenembedding"]
        attach(state.model, ours(tokens=tokens, targets=(exactly(paths),)), name=f"{name}{TOKENS}{index or ''}")


def _check_tying(state: State, name: str, config: Any) -> None:
    """Rows of tied embeddings are tied in any case; what else ``ensure_weight_tying`` asks for is not implemented.

    Raises:
        Wrong: a tied layer has an adapter or a copy of its own.
    """
    tied = tied_with_embedding(state.model)
    if not tied:
        warnings.warn(
            "You have requested ensure_weight_tying, but no tied modules were found in the model",
            PeftWarning,
            stacklevel=7,
        )
    embedding = cast(Any, state.model).get_input_embeddings()
    both = {*tied, *(path for path, module in names_in(state.model).items() if module is embedding)} if tied else set()
    taken = sorted(both & {*state.own_layers(name), *state.extras[name].modules})
    if taken:
        raise Wrong(
            f"ensure_weight_tying=True with {taken[0]!r} among targets or modules_to_save is not implemented: its "
            "weight is tied and the two would part; leave it out, or train rows with trainable_token_indices"
        )


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


def token_tensors(state: State, name: str) -> dict[str, Tensor]:
    """Returns the rows that an adapter trains, ``(tokens, dim)``, by their keys in a file without its prefix.

    Args:
        state: what is on the model. name: the adapter.
    """
    layers = {path: one.tensors() for path, one in state.token_layers(name).items()}
    return {path + TOKEN_KEY: tensors["rows"] for path, tensors in layers.items() if "rows" in tensors}
