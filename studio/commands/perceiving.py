"""What ``studio complete`` says where prompts are sounds or pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from studio.commands.show import Show

if TYPE_CHECKING:
    from studio.pipelines import TextPipeline
    from studio.pipelines.hearing import Transcript
    from studio.pipelines.seeing import Description

__all__ = ["tell_perceived"]


def tell_perceived(
    pipe: TextPipeline, files: Sequence[str], used: Sequence[Mapping[str, Any]], show: Show, *, per_sample: bool,
    max_new_tokens: int, language: str | None, question: str | None, batch_size: int,
) -> None:  # fmt: skip
    """Asks with sounds or pictures, and prints what is said of each.

    Args:
        pipe: hears or sees. files: the sounds, or the pictures. used: what was loaded. show: takes the lines.
        per_sample: each has the adapter in its place. max_new_tokens: tokens to write at most.
        language: what is spoken in the sounds. question: what is asked of the pictures.
        batch_size: how many are asked together.

    Raises:
        UsageError: as :meth:`studio.pipelines.TextPipeline.transcribe`, and as its ``caption``.
    """
    blend: Any = [{entry["name"]: entry["strength"]} for entry in used] if per_sample else None
    shared: dict[str, Any] = {"blend": blend, "max_new_tokens": max_new_tokens, "batch_size": batch_size}
    hears = pipe.base.kind.name == "speech"
    made: Sequence[Transcript | Description] = (
        pipe.transcribe(files, language=language, **shared) if hears else pipe.caption(files, question, **shared)
    )
    for one in made:
        show.say(f"> {one.file}\n{one.text}\n" if len(made) > 1 else one.text)
    cut = sum(not one.ended for one in made)
    if cut:
        show.tell(f"{cut} of {len(made)} did not end within {max_new_tokens} tokens")
    kind = "transcripts" if hears else "descriptions"
    show.result({kind: [asdict(one) for one in made], "adapters": list(used)})
