"""Language bases: what they are, which kinds there are, and how they are opened."""

from __future__ import annotations

from studio.families.language.base import PLAIN_TEMPLATE, LanguageBase
from studio.families.language.embedded import LANGUAGE_BASES, sample_file
from studio.families.language.kinds import KINDS, Kind
from studio.families.language.opening import open_language_base

__all__ = ["KINDS", "LANGUAGE_BASES", "PLAIN_TEMPLATE", "Kind", "LanguageBase", "open_language_base", "sample_file"]
