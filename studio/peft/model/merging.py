"""Merging: adapters folded into the weights by the core, which keeps the originals; a model is merged as a whole."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch

from studio.adapters import Strength, bake, unbake
from studio.peft.model.rows import check_rows
from studio.peft.model.state import State
from studio.peft.terms.errors import PeftWarning, Wrong, refusals

__all__ = ["fold_again", "merge_adapter", "take_out", "unmerge_adapter"]


def merge_adapter(state: State, adapter_names: Sequence[str] | None = None, safe_merge: bool = False) -> None:
    """Folds adapters into the weights, those that act by default; those that are there already stay.

    Raises:
        Unknown: no adapter has that name. Wrong: a weight would become infinite or NaN (with ``safe_merge``), or two
            adapters have rows of their own for one token.
    """
    wanted = list(state.active if adapter_names is None else adapter_names)
    with refusals():
        state.check(*wanted)
        before = state.assembly.baked or state.waiting or {}
        fresh = [name for name in wanted if name not in state.merged]
        check_rows(state, [*state.merged, *fresh])
        if not fresh:
            warnings.warn("All adapters are already merged, nothing to do.", PeftWarning, stacklevel=4)
            return
        strengths = state.assembly.levels.strengths
        blend = {core: strengths.get(core, Strength()) for name in fresh for core in state.cores(name)}
        state.waiting = {**before, **blend}
        try:
            fold_again(state)
            if safe_merge:
                _check_finite(state, fresh)
        except BaseException:
            take_out(state)
            state.waiting = dict(before) or None
            fold_again(state)
            raise


def _check_finite(state: State, names: Sequence[str]) -> None:
    for name in names:
        for path, adapter in state.layers(name):
            if not bool(torch.isfinite(adapter.site.weight).all()):
                raise Wrong(f"NaNs detected in the merged weights. The adapter {name} seems to be broken (at {path})")


def unmerge_adapter(state: State) -> None:
    """Gives the base its weights back, bit for bit; the adapters act live again."""
    if not state.merged:
        warnings.warn("Already unmerged. Nothing to do.", PeftWarning, stacklevel=4)
    take_out(state)
    state.waiting = None


def take_out(state: State) -> None:
    """Takes what is folded in out of the weights for a while; :func:`fold_again` puts it back."""
    baked = state.assembly.baked
    if baked is not None:
        unbake(state.model)
        state.waiting = dict(baked)


def fold_again(state: State) -> None:
    """Folds in what waits for it, unless a layer is switched off: the weights hold a blend for all layers or none."""
    waiting = {core: one for core, one in (state.waiting or {}).items() if core in state.assembly.records}
    if waiting and not state.assembly.levels.silent:
        if state.assembly.baked is not None:
            unbake(state.model)
        bake(state.model, waiting)
        state.waiting = None
