"""Trained rows of single tokens as PEFT shows them: ``embedding.token_adapter``, and an embedding of nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

from torch import Tensor

from studio.adapters import Adapter
from studio.peft.model.names import Table
from studio.peft.model.state import State
from studio.peft.terms.errors import Wrong

__all__ = ["TokenAdapter", "check_rows", "rows_on"]


class TokenAdapter:
    """The rows of single tokens that adapters have on one layer.

    Args:
        state: what is on the model. path: the layer.
        tokens: whether the rows stand beside adapters of layers; else they are adapters of their own.
    """

    def __init__(self, state: State, path: str, *, tokens: bool = True) -> None:
        self._state, self._path, self._tokens = state, path, tokens

    @property
    def trainable_tokens_delta(self) -> Table:
        """Adapter name -> the rows themselves, ``(tokens, dim)``; tied layers have one table."""
        return self._table(_rows)

    @property
    def trainable_tokens_original(self) -> Table:
        """Adapter name -> the base's own rows of the same tokens, ``(tokens, dim)``."""
        return self._table(_originals)

    @property
    def token_indices(self) -> Table:
        """Adapter name -> the numbers of the tokens."""
        return self._table(_numbers)

    @property
    def active_adapters(self) -> list[str]:
        """Names of the adapters that act here."""
        return self._state.active_at(self._path)

    active_adapter = active_adapters

    @property
    def merged_adapters(self) -> list[str]:
        """Names of the adapters that are folded into the weight."""
        here = self._state.adapters_at(self._path, tokens=self._tokens)
        return [name for name in self._state.merged if name in here]

    def _table(self, read: Callable[[State, str, bool], Mapping[str, Any]]) -> Table:
        here = self._state.adapters_at(self._path, tokens=self._tokens)
        owners = tuple((name, cast(Any, adapter).owner.site.path) for name, adapter in here.items())
        made = Table(partial(read, self._state, self._path, self._tokens))
        return self._state.tables.setdefault((read.__name__, self._tokens, owners), made)


def _rows(state: State, path: str, tokens: bool) -> dict[str, Tensor]:
    here = state.adapters_at(path, tokens=tokens)
    return {name: cast(Any, adapter).owner.tensor("rows") for name, adapter in here.items()}


def _numbers(state: State, path: str, tokens: bool) -> dict[str, list[int]]:
    here = state.adapters_at(path, tokens=tokens)
    return {name: list(cast(Any, adapter.config).tokens) for name, adapter in here.items()}


def _originals(state: State, path: str, tokens: bool) -> dict[str, Tensor]:
    held = {key: one for _, key, one in state.assembly.originals.get(path, ()) if one is not None}
    here = state.adapters_at(path, tokens=tokens)
    return {
        name: held.get("weight", adapter.site.weight).detach()[list(cast(Any, adapter.config).tokens)]
        for name, adapter in here.items()
    }


def rows_on(state: State, name: str) -> dict[str, Adapter]:
    """Returns the layers of which an adapter has rows of single tokens, beside its layers or as such: path -> part."""
    found = {**state.own_layers(name), **state.token_layers(name)}
    return {path: adapter for path, adapter in found.items() if adapter.tied}


def check_rows(state: State, names: list[str]) -> None:
    """Checks that adapters can be folded in together: of no row two of them have one each.

    Raises:
        Wrong: two of them do.
    """
    taken: dict[tuple[str, int], str] = {}
    for name in names:
        for path, adapter in rows_on(state, name).items():
            numbers = cast(Any, adapter.config).tokens
            both = sorted(token for token in numbers if (path, token) in taken)
            if both:
                raise Wrong(
                    f"Token indices {both} of {name!r} at {path} are already defined and would result in undefined "
                    f"merging behavior: {taken[path, both[0]]!r} has rows for them too"
                )
            taken |= {(path, token): name for token in numbers}
