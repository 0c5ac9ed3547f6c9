"""What ``studio complete`` says where a base makes vectors of texts: how near they are to each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from studio.commands.show import Show

if TYPE_CHECKING:
    from studio.pipelines import TextPipeline

__all__ = ["tell_nearness"]


def tell_nearness(
    pipe: TextPipeline, prompts: Sequence[str], used: Sequence[Mapping[str, Any]], show: Show, *, per_sample: bool,
    batch_size: int,
) -> None:  # fmt: skip
    """Prints the cosines between all texts, a line for each text.

    Args:
        pipe: an encoder, with its adapters. prompts: the texts, with their tags. used: what was loaded.
        show: takes the lines. per_sample: each text has the adapter in its place.
        batch_size: texts that are computed together.

    Raises:
        UsageError: as :meth:`studio.pipelines.TextPipeline.embed`.
    """
    from studio.adapters import current_blend

    tagged = [pipe.read_tags(prompt) for prompt in prompts]
    usual = current_blend(pipe.carrier)
    blend: Any = [usual if one.blend is None else one.blend for one in tagged]
    if per_sample:
        blend = [{entry["name"]: entry["strength"]} for entry in used]
    texts = [one.text for one in tagged]
    vectors = pipe.embed(texts, blend=blend, batch_size=batch_size)
    cosines = (vectors @ vectors.mT).tolist()
    for text, row in zip(texts, cosines, strict=True):
        show.say(f"{' '.join(f'{cosine:6.3f}' for cosine in row)}  {text}")
    show.result({"texts": texts, "cosines": cosines, "adapters": list(used)})
