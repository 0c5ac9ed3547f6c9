"""What ``studio complete`` says where prompts are sounds or pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from studio.commands.show import Show

if TYPE_CHECKING:
    from studio.pipelines import TextPipeline

__all__ = ["tell_perceived"]


def tell_perceived(
    pipe: TextPipeline, files: Sequence[str], used: Sequence[Mapping[str, Any]], show: Show, *, per_sample: bool,
    max_new_tokens: int, language: str | None, batch_size: int,
) -> None:  # fmt: skip
    """Asks with sounds, and prints what each says.

    Args:
        pipe: hears. files: the sounds. used: what was loaded. show: takes the lines.
        per_sample: each has the adapter in its place. max_new_tokens: tokens to write at most.
        language: what is spoken. batch_size: how many are asked together.

    Raises:
        UsageError: as :meth:`studio.pipelines.TextPipeline.transcribe`.
    """
    blend: Any = [{entry["name"]: entry["strength"]} for entry in used] if per_sample else None
    made = pipe.transcribe(
        files, blend=blend, language=language, max_new_tokens=max_new_tokens, batch_size=batch_size
    )  # fmt: skip
    for one in made:
        show.say(f"> {one.file}\n{one.text}\n" if len(made) > 1 else one.text)
    cut = sum(not one.ended for one in made)
    if cut:
        show.tell(f"{cut} of {len(made)} did not end within {max_new_tokens} tokens")
    show.result({"transcripts": [asdict(one) for one in made], "adapters": list(used)})
