"""What the programs that serve language models have no place for, whichever of them it is."""

from __future__ import annotations

from collections.abc import Callable

from studio.adapters.sites.parameter import BARE
from studio.errors import DoesNotFit
from studio.files.format import Draft, Format

__all__ = ["check_served"]


def check_served(draft: Draft, format: Format, program: str, refusal: Callable[[str], str]) -> None:
    """Refuses an adapter that a program cannot have.

    Args:
        draft: the adapter. format: the program's. program: what it is called.
        refusal: path of a layer -> why this program in particular cannot have its adapter, or "".

    Raises:
        DoesNotFit: it is of a method that the format has not, or on a layer that the program has no adapter for.
    """
    if not format.holds(draft.config):
        methods = " or ".join(format.methods)
        raise DoesNotFit(
            f"a {format.title} holds {methods} alone, and this adapter is {draft.config.label}: export it with a rank "
            "(rank=N, --rank N), and it becomes a LoRA, with the error said"
        )
    for path, site in draft.sites.items():
        reason = _shared(draft, path, site.kind) or refusal(path)
        if reason:
            raise DoesNotFit(f"{program} has no adapter for {path}: {reason}; attach one to other layers (exclude=...)")


def _shared(draft: Draft, path: str, kind: str) -> str:
    """Why none of them can have this layer, or ""."""
    if kind == "embedding":
        return "it is an embedding, on which hardly any of its models lets adapters act"
    if kind in BARE:
        return "it is no layer but a parameter, such as several experts in one tensor"
    if "bias" in draft.layers[path]:
        return "its adapter has a bias, which there is no place for"
    return ""
