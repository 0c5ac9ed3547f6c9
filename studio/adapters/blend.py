"""blend: which adapters act now, and how strongly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from studio.adapters.contract.strength import Strength, StrengthLike, as_strength
from studio.adapters.hosting.attached import assemblies, check_known, check_unbaked, known_names, rows_of
from studio.adapters.hosting.turns import BlendContext, check_turn, turn
from studio.adapters.targets.unmatched import check_blocks
from studio.errors import BadConfig

__all__ = ["blend", "blended", "current_blend", "read_blend", "sample_rows"]


def read_blend(model: Any, wanted: Mapping[str, StrengthLike] | str) -> dict[str, Strength]:
    """Reads a blend and checks that all it names is there.

    Raises:
        UnknownName: an adapter that is not attached. BadConfig: an impossible strength, one of a component that the
            model does not have, or of blocks that no layer of the adapter is in.
    """
    if not isinstance(wanted, (str, Mapping)):
        raise BadConfig(f"a blend is a name, or a table of names and strengths such as {{'dog': 0.8}}, not {wanted!r}")
    strengths = {wanted: Strength()} if isinstance(wanted, str) else {n: as_strength(s) for n, s in wanted.items()}
    present = assemblies(model)
    known = {name for assembly in present.values() for name in assembly.records}
    for name, strength in strengths.items():
        if name not in known:
            check_known(model, name)
        if strength.blocks or strength.components:
            check_blocks(name, strength, {one: assembly.places(name) for one, assembly in present.items()})
    return strengths


def blend(model: Any, wanted: Mapping[str, StrengthLike] | str) -> None:
    """Sets which adapters act and how strongly: ``y = base(x) + Σ s_i · change_i(x)``.

    Args:
        model: the model or pipeline.
        wanted: adapter name to strength (a number, a :class:`~studio.Strength`, or one number per sample), or one
            name for strength 1; ``{}`` is the base alone. Adapters that are not named are off.

    Raises:
        UnknownName: an adapter that is not attached. BadConfig: an impossible strength.
        DoesNotFit: a blend is baked into the weights.

    Example:
        >>> import torch, studio
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> _ = studio.attach(net, studio.LoRA(rank=2, targets=("0",)), name="dog")
        >>> studio.blend(net, {"dog": 0.8})
        >>> studio.adapters(net)["dog"].strength
        0.8
    """
    with turn(model):
        _set(model, wanted)


def _set(model: Any, wanted: Mapping[str, StrengthLike] | str) -> None:
    check_unbaked(model, "blend")
    strengths = read_blend(model, wanted)
    present = list(assemblies(model).values())
    for assembly in present:
        check_turn(assembly.levels)
    for assembly in present:
        assembly.set({name: strength for name, strength in strengths.items() if name in assembly.records})


def current_blend(model: Any) -> dict[str, Strength]:
    """Returns the current blend: the strengths of the adapters that act."""
    found: dict[str, Strength] = {}
    for assembly in assemblies(model).values():
        found.update(assembly.levels.strengths)
    return {name: found[name] for name in known_names(model) if name in found}


@contextmanager
def blended(model: Any, wanted: Mapping[str, StrengthLike] | str) -> Iterator[None]:
    """Sets a blend while the context lasts, and gives the former one back, after an error too.

    Threads that share a model take turns: another thread's ``blended`` waits until this one has ended.

    Args:
        model: the model or pipeline. wanted: as for :func:`blend`.

    Raises:
        UnknownName: an adapter that is not attached. BadConfig: an impossible strength.
        DoesNotFit: a blend is baked into the weights, another task of this thread is inside a context on the same
            model, or contexts that do not end in the opposite order of their beginning.

    Example:
        >>> import torch, studio
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 8))
        >>> _ = studio.attach(net, studio.LoRA(rank=2, targets=("0",)), name="dog")
        >>> with studio.blended(net, {}):
        ...     studio.adapters(net)["dog"].strength
        0.0
        >>> studio.adapters(net)["dog"].strength
        1.0
    """
    with turn(model):
        context = BlendContext(assembly.levels for assembly in assemblies(model).values())
        try:
            _set(model, wanted)
            yield
        finally:
            restored = context.leave()
            for assembly in assemblies(model).values():
                if assembly.baked is None and assembly.levels in restored:
                    before = restored[assembly.levels]
                    assembly.set({name: before[name] for name in before if name in assembly.records})


@contextmanager
def sample_rows(model: Any, rows: Sequence[int] | None) -> Iterator[None]:
    """Says which sample every row of a batch belongs to, while the context lasts.

    Strengths per sample need it where a sample has several rows: guidance that puts the unconditional rows before the
    others has ``rows = [0, 1, 0, 1]`` for two samples.

    Args:
        model: the model or pipeline. rows: sample index of every row; None: every row is its own sample.

    Raises:
        BadConfig: a negative sample index.
    """
    if rows is not None and any(row < 0 for row in rows):
        raise BadConfig(f"rows={list(rows)!r} has a negative sample index")
    with turn(model), rows_of(model, rows):
        yield
