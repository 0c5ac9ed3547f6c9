"""Which sort of base is named on the command line: one that draws, or one that writes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from studio.commands.loading import kind_of_adapters
from studio.errors import BadConfig

if TYPE_CHECKING:
    from studio.commands.words import AdapterWord
    from studio.pipelines.pipeline import Pipeline

__all__ = ["pipeline_for"]


def pipeline_for(
    base: str, config_of: str | None = None, adapters: Sequence[AdapterWord] = ()
) -> tuple[type[Pipeline], dict[str, Any]]:
    """Returns the pipeline that opens a base, that of texts for an embedded language base or a transformers folder.

    With it comes what a language base is opened as, as :func:`~studio.commands.loading.kind_of_adapters` tells it;
    nothing for a base that draws.

    Args:
        base: what was named. config_of: the base whose configs a checkpoint of one file is opened with.
        adapters: those for it, which tell what a hub id means.

    Raises:
        BadConfig: configs for a base that writes. BadFile: an adapter cannot be read.
    """
    from studio.pipelines import ImagePipeline, TextPipeline

    if not _writes(base, adapters):
        return ImagePipeline, {}
    if config_of is not None:
        raise BadConfig(f"--config-of is for a checkpoint of a base that draws, and {base} writes: leave it out")
    return TextPipeline, kind_of_adapters(adapters)


def _writes(base: str, adapters: Sequence[AdapterWord]) -> bool:
    from studio.families.called import stands, writes

    return writes(base) or (not stands(base) and any(_is_for_texts(word) for word in adapters))


def _is_for_texts(word: AdapterWord) -> bool:
    from studio.files import inspect
    from studio.files.source import PICKLED
    from studio.pipelines.naming import adapter_file

    file = adapter_file(word.file)
    if file.suffix in PICKLED:
        return False
    found = inspect(file)
    return found.family == "llm" or "tokenizer" in found.facts or found.format in ("gguf", "mlx")
