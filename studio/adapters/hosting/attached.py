"""What is attached to a model or pipeline: its assemblies, the names on them, and what is asked of all at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from studio.adapters.hosting.assembly import Assembly, assembly_at
from studio.errors import DoesNotFit, UnknownName, nearest
from studio.families import components

__all__ = ["assemblies", "check_known", "check_unbaked", "known_names", "rows_of", "whole_path"]


def assemblies(model: Any) -> dict[str, Assembly]:
    """Returns the assemblies of a model or pipeline by component; components that carry nothing are left out."""
    found = {}
    for name, module in components(model).items():
        assembly = assembly_at(module)
        if assembly is not None:
            found[name] = assembly
    return found


def known_names(model: Any) -> list[str]:
    """Returns the names of the adapters on ``model``, in the order in which they were attached."""
    names: dict[str, None] = {}
    for assembly in assemblies(model).values():
        names.update(dict.fromkeys(assembly.records))
    return list(names)


def check_known(model: Any, name: str) -> None:
    """Checks that an adapter is there.

    Raises:
        UnknownName: there is none of that name.
    """
    known = known_names(model)
    if name not in known:
        close = nearest(name, known, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UnknownName(
            f"no adapter is named {name!r}{hint} (attached: {', '.join(known) or 'none'}){_inside(model)}"
        )


def _inside(model: Any) -> str:
    """Says on which module inside a model adapters are, where the model is something that stands around it."""
    for component, module in components(model).items():
        for path, inner in module.named_modules():
            if path and assembly_at(inner) is not None:
                names = ", ".join(known_names(inner))
                place = "model.get_base_model()" if hasattr(model, "get_base_model") else whole_path(component, path)
                return f"; the {type(inner).__name__} inside it carries {names}: give that one, {place}"
    return ""


def check_unbaked(model: Any, doing: str) -> None:
    """Checks that no blend is baked into the weights.

    Raises:
        DoesNotFit: one is.
    """
    for assembly in assemblies(model).values():
        if assembly.baked is not None:
            raise DoesNotFit(f"cannot {doing}: a blend is baked into the weights; call unbake first")


@contextmanager
def rows_of(model: Any, rows: Sequence[int] | None) -> Iterator[None]:
    """Sets which sample every row of a batch belongs to, while the context lasts."""
    found = [assembly.levels for assembly in assemblies(model).values()]
    before = [levels.rows for levels in found]
    for levels in found:
        levels.rows = None if rows is None else tuple(int(row) for row in rows)
        levels.touch()
    try:
        yield
    finally:
        for levels, old in zip(found, before, strict=True):
            levels.rows = old
            levels.touch()


def whole_path(component: str, *parts: str) -> str:
    """Returns the path of a layer in a pipeline: its component in front, where there is one.

    Example:
        >>> whole_path("unet", "mid_block.to_q"), whole_path("", "mid_block.to_q")
        ('unet.mid_block.to_q', 'mid_block.to_q')
    """
    return ".".join(part for part in (component, *parts) if part)
