"""The words that files begin a layer's name with, and the components of a pipeline that they mean."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Final

from studio.families import FAMILIES, Family

__all__ = ["ANY_FLAT", "NATIVE", "component_of", "component_words", "flat_prefix", "heading", "is_flat", "meant_by"]

ANY_FLAT: Final = "lycoris"
"""Begins the flattened names of LyCORIS' own wrapper, in any component."""
NATIVE: Final = ("diffusion_model.", "model.diffusion_model.")
"""Begins the names that those who trained a base gave to its denoiser's layers."""
_ELSEWHERE: Final = ("transformer_2", "prior", "controlnet")  # of pipelines that no family here has
_DENOISERS: Final = ("oft_unet",)
_PRIOR: Final = "lora_prior_unet"
_ENCODERS: Final = {"lora_te": 0, "lora_te1": 0, "lora_te2": 1, "lora_te3": 2}
"""Which text encoder is meant where a family does not say it."""


@functools.lru_cache(maxsize=8)
def _words(families: tuple[str, ...]) -> frozenset[str]:
    rows = [FAMILIES[name] for name in families]
    return frozenset({*_ELSEWHERE, *(word for row in rows for word in (row.denoiser, *row.readers))})


def component_words() -> frozenset[str]:
    """Returns the words that begin a dotted key and name a component of a pipeline."""
    return _words(FAMILIES.names)


def component_of(module: str) -> str:
    """Returns the component that the name of a module in a file begins with, or ``""``.

    Example:
        >>> component_of("unet.mid_block.to_q"), component_of("mid_block.to_q")
        ('unet', '')
    """
    head = module.partition(".")[0]
    return head if head in component_words() else ""


@functools.lru_cache(maxsize=8)
def _prefixes(families: tuple[str, ...]) -> tuple[str, ...]:
    known = {prefix for name in families for prefix in FAMILIES[name].flat.values()}
    return tuple(sorted((f"{one}_" for one in known | {*_DENOISERS, *_ENCODERS, _PRIOR, ANY_FLAT}), reverse=True))


def flat_prefix(text: str) -> str:
    """Returns what a flattened name begins with, or ``""``.

    Example:
        >>> flat_prefix("lora_te1_text_model_encoder"), flat_prefix("unet.mid_block")
        ('lora_te1', '')
    """
    return next((one[:-1] for one in _prefixes(FAMILIES.names) if text.startswith(one)), "")


def is_flat(key: str) -> bool:
    """Says whether a key begins as flattened ones do."""
    return "." in key and flat_prefix(key) != ""


def meant_by(prefix: str, family: Family | None) -> tuple[str, ...]:
    """Returns the components that the prefix of a flattened name may mean; none means any.

    Args:
        prefix: as :func:`flat_prefix` returns it. family: the model's.
    """
    if prefix == ANY_FLAT:
        return ()
    if prefix == _PRIOR:
        return ("prior",)
    if prefix not in _ENCODERS:
        return tuple(sorted({one.denoiser for one in (FAMILIES.values() if family is None else (family,))}))
    families: Iterable[Family] = FAMILIES.values() if family is None else (family,)
    own = {one.component for row in families for one in row.encoders if one.kohya == prefix}
    if own:
        return tuple(sorted(own))
    readers = max((row.readers for row in FAMILIES.values()), key=len) if family is None else family.readers
    return readers[_ENCODERS[prefix] : _ENCODERS[prefix] + 1] or (f"another encoder ({prefix})",)


def heading(name: str) -> str:
    """Returns what a layer's name in a file begins with and a component is meant by, or ``""``.

    Example:
        >>> heading("lora_te1_text_model_encoder"), heading("unet.mid_block"), heading("mid_block")
        ('lora_te1', 'unet', '')
    """
    return component_of(name) or flat_prefix(name) or next((one[:-1] for one in NATIVE if name.startswith(one)), "")
