"""What is asked to be quantised, and how: ``"nf4"``, ``"nf4,text_encoder_2=int8"``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from studio.errors import BadConfig
from studio.quantization.backend import BACKENDS

__all__ = ["Wishes", "read_wishes", "written"]

Wishes: TypeAlias = "str | Sequence[str] | Mapping[str, str]"


def read_wishes(asked: Wishes | None, *, packages: bool = True) -> dict[str, str]:
    """Reads what is asked for: component -> name of a backend; ``""`` is the denoiser, or a model by itself.

    Args:
        asked: ``"nf4"`` for the denoiser, ``"text_encoder_2=int8"`` for another component alone, several with commas
            between or as a list, or a mapping.
        packages: whether what quantises must be installed.

    Raises:
        UnknownName: no backend is called so. MissingPackage: its package is not installed.
        BadConfig: a component is named twice.

    Example:
        >>> read_wishes("grid4,text_encoder_2=grid8")
        {'': 'grid4', 'text_encoder_2': 'grid8'}
    """
    if asked is None:
        return {}
    if isinstance(asked, Mapping):
        pairs = [(str(part), str(name)) for part, name in asked.items()]
    else:
        words = [word.strip() for one in ([asked] if isinstance(asked, str) else asked) for word in one.split(",")]
        pairs = [(part, name) for part, _, name in (_halves(word) for word in words if word)]
    found: dict[str, str] = {}
    for part, name in pairs:
        backend = BACKENDS[name]
        if packages:
            backend.need()
        if part in found:
            raise BadConfig(
                f"{part or 'the denoiser'} is quantised as {found[part]!r} and as {name!r}: say one of them"
            )
        found[part] = name
    return found


def _halves(word: str) -> tuple[str, str, str]:
    return word.partition("=") if "=" in word else ("", "=", word)


def written(wishes: Mapping[str, str]) -> str:
    """Returns wishes as one word, as :func:`read_wishes` takes them.

    Example:
        >>> written({"vae": "fp8", "": "nf4"})
        'nf4,vae=fp8'
    """
    return ",".join(f"{part}={name}" if part else name for part, name in sorted(wishes.items()))
