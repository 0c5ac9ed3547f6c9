"""Merging: adapters folded into the weights by the core, which keeps the originals; a model is merged as a whole."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch

from studio.adapters import Strength, bake, unbake
from studio.peft.model.state import State
from studio.peft.terms.errors import PeftWarning, Wrong, refusals

__all__ = ["fold_again", "merge", "take_out", "unmerge"]


def merge(state: State, names: Sequence[str] | None = None, *, safe: bool = False) -> None:
    """Folds adapters into the weights; those that are there already stay.

    Args:
        state: what is on the model. names: which adapters; None: those that act.
        safe: refuse what makes a weight infinite or NaN.

    Raises:
        Unknown: no adapter has that name. Wrong: an adapter would make a weight infinite or NaN (with ``safe``).
    """
    wanted = list(state.active if names is None else names)
    with refusals():
        state.check(*wanted)
        before = state.assembly.baked or state.waiting or {}
        fresh = [name for name in wanted if name not in state.merged]
        if not fresh:
            warnings.warn("All adapters are already merged, nothing to do.", PeftWarning, stacklevel=4)
            return
        state.waiting = {**before, **_blend_of(state, fresh)}
        try:
            fold_again(state)
            if safe:
                _check_finite(state, fresh)
        except BaseException:
            take_out(state)
            state.waiting = dict(before) or None
            fold_again(state)
            raise


def _blend_of(state: State, names: Sequence[str]) -> Mapping[str, Strength]:
    """The blend of some adapters, whether they act now or not."""
    strengths = state.assembly.levels.strengths
    return {core: strengths.get(core, Strength()) for name in names for core in state.cores(name)}


def _check_finite(state: State, names: Sequence[str]) -> None:
    for name in names:
        for path, adapter in state.layers(name):
            if not bool(torch.isfinite(adapter.site.weight).all()):
                raise Wrong(f"NaNs detected in the merged weights. The adapter {name} seems to be broken (at {path})")


def unmerge(state: State) -> None:
    """Gives the base its weights back, bit for bit; the adapters act live again.

    Args:
        state: what is on the model.
    """
    if not state.merged:
        warnings.warn("Already unmerged. Nothing to do.", PeftWarning, stacklevel=4)
        return
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
