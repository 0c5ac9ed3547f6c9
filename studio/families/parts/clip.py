"""Prompts that CLIP reads in chunks: as many tokens as it has places for, one chunk behind the other.

A chunk has the tokenizer's length: the begin token, 75 tokens of text and the end token for the public ones. A comma at
most 20 tokens before a full chunk's end ends it, so that what stands behind it is not torn apart; nor is a learned word
of several vectors.

References:
    AUTOMATIC1111: stable-diffusion-webui, 2022, https://github.com/AUTOMATIC1111/stable-diffusion-webui.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from studio.families.lookup import inner_tokens
from studio.families.parts.emphasis import emphasised
from studio.families.parts.place import device_of
from studio.families.parts.texts import check_tokens
from studio.families.words import Prompts, Words

__all__ = ["BACKTRACK", "Chunks", "check_clip", "in_chunks", "read_chunks", "row_length"]

BACKTRACK: Final = 20

Token = tuple[int, float]


@dataclass(frozen=True)
class Chunks:
    """Prompts as CLIP reads them.

    Args:
        ids: tokens, int64 ``(B, chunks, L)``.
        weights: of each token, fp32 ``(B, chunks, L)``.
    """

    ids: Tensor
    weights: Tensor


def check_clip(tokenizer: Any, prompts: Prompts) -> None:
    """Checks that a caption is read whole in one chunk; a prompt may have any number of them.

    Raises:
        DoesNotFit: a caption is longer; what would have been cut off is named.
    """
    check_tokens(tokenizer, [prompt for prompt in prompts if isinstance(prompt, str)])


def row_length(tokenizer: Any, prompt: str | Words) -> int:
    """Returns the tokens of all chunks of a prompt."""
    return tokenizer.model_max_length * len(_filled(tokenizer, prompt))


def in_chunks(tokenizer: Any, prompts: Prompts, prepare: Callable[[str], str] = str) -> Chunks:
    """Returns the tokens and weights of prompts; all have as many chunks as the longest, empty ones at the end.

    Args:
        tokenizer: the encoder's.
        prompts: B prompts.
        prepare: changes each piece of text before it is read.

    Raises:
        DoesNotFit: a caption is longer than a chunk.
    """
    check_clip(tokenizer, prompts)
    rows = [_filled(tokenizer, prompt, prepare) for prompt in prompts]
    most = max(map(len, rows))
    framed = [[_framed(tokenizer, chunk) for chunk in [*row, *[[]] * (most - len(row))]] for row in rows]
    ids = torch.tensor([[[token for token, _ in chunk] for chunk in row] for row in framed], device="cpu")
    weights = torch.tensor([[[weight for _, weight in chunk] for chunk in row] for row in framed], device="cpu")
    return Chunks(ids, weights)


def read_chunks(
    pipe: Any, tokenizer: Any, encoder: Any, prompts: Prompts, states: Callable[[Any], Tensor], **told: Any
) -> tuple[Tensor, Any]:
    """Returns the weighed states of prompts ``(B, chunks · L, D)``, and what the encoder made of their first chunks.

    Args:
        pipe: the pipeline.
        tokenizer: the encoder's. encoder: a CLIP.
        prompts: B prompts.
        states: what the denoiser reads of the encoder's output, ``(B, L, D)``.
        told: what the encoder is called with beside the tokens.

    Raises:
        DoesNotFit: a caption is longer than a chunk.
    """
    read = in_chunks(tokenizer, prompts, _spelled(pipe, tokenizer))
    outputs = [encoder(ids.to(device_of(pipe, encoder)), **told) for ids in read.ids.unbind(1)]
    parts = [emphasised(states(out), one) for out, one in zip(outputs, read.weights.unbind(1), strict=True)]
    return (parts[0] if len(parts) == 1 else torch.cat(parts, 1)), outputs[0]


def _spelled(pipe: Any, tokenizer: Any) -> Callable[[str], str]:
    """How a word that diffusers has learned as several tokens is spelled."""
    added = tokenizer.added_tokens_encoder
    if not any(f"{token}_1" in added for token in added):
        return str
    return lambda text: pipe.maybe_convert_prompt(text, tokenizer)


def _filled(tokenizer: Any, prompt: str | Words, prepare: Callable[[str], str] = str) -> list[list[Token]]:
    """The chunks of a prompt without their frames, and the empty ones that its length asks for."""
    words = Words((((prompt, 1.0),),)) if isinstance(prompt, str) else prompt
    places, comma, inner = tokenizer.model_max_length - 2, _comma(tokenizer), inner_tokens(tokenizer)
    chunks = [chunk for part in words.parts for chunk in _cut(_tokens(tokenizer, part, prepare), places, comma, inner)]
    if len(chunks) > 1 and not chunks[-1]:  # nothing stands behind the last BREAK
        chunks.pop()
    wanted = -(-words.length // tokenizer.model_max_length)
    return chunks + [[]] * (wanted - len(chunks))


def _comma(tokenizer: Any) -> int | None:
    """The comma's token, where there is one."""
    found = tokenizer.convert_tokens_to_ids(",</w>")
    return None if found == tokenizer.unk_token_id else found


def _tokens(tokenizer: Any, part: tuple[tuple[str, float], ...], prepare: Callable[[str], str]) -> Iterator[Token]:
    for text, weight in part:
        for token in tokenizer(prepare(text), add_special_tokens=False, truncation=False, verbose=False).input_ids:
            yield token, weight


def _cut(tokens: Iterable[Token], places: int, comma: int | None, inner: Collection[int]) -> list[list[Token]]:
    """Cuts a part into chunks, never before an inner token of a word; without any token it is one."""
    done: list[list[Token]] = []
    chunk: list[Token] = []
    last = -1  # where the chunk's last comma stands
    for token in tokens:
        if len(chunk) == places:
            torn = token[0] != comma and last >= 0 and places - last <= BACKTRACK
            end = last + 1 if torn else places
            while end > 1 and (*chunk, token)[end][0] in inner:
                end -= 1
            done.append(chunk[:end])
            chunk, last = chunk[end:], -1
        elif token[0] == comma:
            last = len(chunk)
        chunk.append(token)
    return [*done, chunk]


def _framed(tokenizer: Any, chunk: list[Token]) -> list[Token]:
    missing = tokenizer.model_max_length - 2 - len(chunk)
    ends = [(tokenizer.bos_token_id, 1.0)], [(tokenizer.eos_token_id, 1.0), *[(tokenizer.pad_token_id, 1.0)] * missing]
    return [*ends[0], *chunk, *ends[1]]
