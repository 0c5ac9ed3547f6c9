"""Token rows trained beside an adapter's layers (``trainable_token_indices``): further adapters of the core."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor, nn

from studio.adapters import METHODS, attach
from studio.adapters.contract.pattern import exactly
from studio.peft.configs.select import modules_named, names_in, tied_group
from studio.peft.model.state import TOKENS, State
from studio.peft.terms.errors import Wrong

__all__ = ["TOKEN_KEY", "add_tokens", "token_tensors"]

TOKEN_KEY: Final = ".token_adapter.trainable_tokens_delta"
"""What follows an embedding's name in PEFT's files; the rows themselves, whatever the name says."""


def add_tokens(state: State, name: str, config: Any) -> None:
    """Attaches the rows that ``trainable_token_indices`` names.

    Raises:
        Wrong: a list without a name, where the model has no input embedding; an embedding that is trained whole too;
            different rows of tied layers that are to stay tied.
        NoMatchingPeftModuleError: a name that fits nothing.
    """
    groups: dict[tuple[int, ...], list[str]] = {}
    wanted = _token_rows(state.model, config)
    _check_rows(state, name, config, wanted)
    for path, tokens in wanted.items():
        groups.setdefault(tokens, []).append(path)
    for index, (tokens, paths) in enumerate(groups.items()):
        ours: Any = METHODS["tokenembedding"]
        attach(state.model, ours(tokens=tokens, targets=(exactly(paths),)), name=f"{name}{TOKENS}{index or ''}")


def _check_rows(state: State, name: str, config: Any, wanted: Mapping[str, tuple[int, ...]]) -> None:
    whole = sorted(wanted.keys() & state.extras[name].modules.keys())
    if whole:
        raise Wrong(
            "The embedding layer is already marked to be trained fully, either specify `modules_to_save` or "
            f"`trainable_token_indices` for it: {whole[0]}"
        )
    if wanted and getattr(config, "ensure_weight_tying", False):
        group = tied_group(state.model)
        numbers = {wanted[path] for path in group if path in wanted}
        if len(numbers) > 1:
            raise Wrong(
                "Cannot ensure weight tying when different token indices are specified for layers that are tied: "
                f"{', '.join(path for path in group if path in wanted)}"
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
