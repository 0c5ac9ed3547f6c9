"""Families: what the studio knows about each model architecture, and opening a base of one of them."""

from __future__ import annotations

from studio.families import image as _image  # noqa: F401  (its files register their rows)
from studio.families.base import BASES, Base, open_base
from studio.families.conditioning import Conditioning, Shot
from studio.families.family import FAMILIES, Family, components, family_called, family_in, family_of, is_pipeline
from studio.families.wrapper import check_open, check_own, named_parameters, named_parts, unwrapped

__all__ = [
    "BASES",
    "FAMILIES",
    "Base",
    "Conditioning",
    "Family",
    "Shot",
    "check_open",
    "check_own",
    "components",
    "family_called",
    "family_in",
    "family_of",
    "is_pipeline",
    "named_parameters",
    "named_parts",
    "open_base",
    "unwrapped",
]
