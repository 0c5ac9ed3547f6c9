"""The one way in which models go on writing, whatever they have read: token by token, until an end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from studio.errors import StudioError
from studio.families.language import LanguageBase
from studio.families.quiet import quietly

__all__ = ["Written", "generated", "passes"]


class Written(NamedTuple):
    """What was written behind a prompt.

    Args:
        text: the text, without the blanks around it.
        tokens: its token numbers, the end included.
        ended: whether it ended by itself.
    """

    text: str
    tokens: tuple[int, ...]
    ended: bool


def passes(most_of: Sequence[int], batch_size: int) -> Iterator[tuple[int, list[int]]]:
    """Shares rows out to passes that write equally many tokens, so that no row ends early for its neighbours' sake.

    Args:
        most_of: how many tokens may be written for each row. batch_size: rows of a pass at most.

    Returns:
        Of each pass the tokens to write at most, and the places of its rows.

    Example:
        >>> list(passes([8, 3, 8, 8], 2))
        [(8, [0, 2]), (8, [3]), (3, [1])]
    """
    for most in dict.fromkeys(most_of):
        places = [place for place, other in enumerate(most_of) if other == most]
        for begin in range(0, len(places), batch_size):
            yield most, places[begin : begin + batch_size]


@torch.no_grad()
def generated(
    base: LanguageBase,
    inputs: Mapping[str, Any],
    *,
    begin: int,
    most: int,
    processors: Sequence[Callable[[Tensor, Tensor], Tensor]] = (),
    streamer: Any = None,
) -> Iterator[Written]:
    """Yields what a model writes for each row of its inputs, with the blend that is on.

    Args:
        base: whose model writes.
        inputs: what it reads, as arguments of its ``generate``.
        begin: how many tokens of what comes out were given.
        most: tokens to write at most.
        processors: change the logits ``(B, V)`` of the next token, given those so far.
        streamer: takes each token.

    Raises:
        StudioError: the model gave no finite numbers.
    """
    from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList

    ends, pad, own = base.ends, base.pad, base.model.generation_config
    # all that a base's own generation config might put in the way is said here
    config = GenerationConfig(
        max_new_tokens=most, do_sample=False, num_beams=1, repetition_penalty=1.0, no_repeat_ngram_size=0,
        eos_token_id=list(ends) or None, pad_token_id=pad, use_cache=True,
        decoder_start_token_id=own.decoder_start_token_id, bos_token_id=own.bos_token_id,
    )  # fmt: skip
    # Whisper's own divides sounds and chooses languages; what is given here has been prepared
    hears = base.kind.name == "speech"
    go_on = GenerationMixin.generate.__get__(base.model) if hears else base.model.generate
    with quietly():  # the base's own config may name a length too
        made = go_on(
            **inputs, generation_config=config, logits_processor=LogitsProcessorList([_finite, *processors]),
            streamer=streamer,
        )  # fmt: skip
    for row in made[:, begin:].tolist():
        stop = next((place for place, token in enumerate(row) if token in ends), None)
        kept = row if stop is None else row[:stop]
        text = base.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        yield Written(text.strip(), tuple(row[: len(kept) + (stop is not None)]), stop is not None)


def _finite(input_ids: Tensor, scores: Tensor) -> Tensor:
    """Refuses to choose where there is nothing to choose by; a token may be impossible (-inf)."""
    if not bool((scores < torch.inf).all()):
        raise StudioError(
            f"the model gave numbers that are not finite in {str(scores.dtype).removeprefix('torch.')}; open the base "
            "with another dtype (bfloat16, float32), or lower the adapters' strengths"
        )
    return scores
