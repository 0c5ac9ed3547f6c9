"""What text encoders make of weighed words and of long prompts, against A1111's rules computed anew in float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from studio.errors import DoesNotFit
from studio.families import FAMILIES, open_base
from studio.families.parts.clip import BACKTRACK, in_chunks
from studio.families.words import Words
from tiny_pipelines import BUILDERS, FAMILY, build
from tiny_pipelines.tokenizers import clip_tokenizer

CHUNKED = [kind for kind in BUILDERS if FAMILIES[FAMILY[kind]].chunks]
WEIGHED = [kind for kind in BUILDERS if FAMILIES[FAMILY[kind]].emphasis]
EXACT = 1e-6
LONG = "a photo of a dog, " * 20
Part = Sequence[tuple[str, float]]


@pytest.fixture(scope="module")
def bases():
    made: dict[str, Any] = {"emoji": open_base("emoji")}

    def get(kind: str) -> Any:
        if kind not in made:
            made[kind] = base = open_base(build(kind))
            if base.family.name in ("sd1", "sd2"):  # as in public ones: without it the mean of the states is 0
                base.pipe.text_encoder.final_layer_norm.bias.data.fill_(0.1)
        return made[kind]

    return get


def words(*parts: Part, length: int = 0) -> Words:
    return Words(tuple(tuple(part) for part in parts), length)


def encoded(base: Any, *prompts: str | Words, negative: bool = False) -> Any:
    with torch.no_grad():
        return base.family.encode_text(base.pipe, prompts, negative)


def a1111_chunks(tokenizer: Any, parts: Sequence[Part]) -> list[list[tuple[int, float]]]:
    """The tokens of each chunk as A1111 fills them, without the begin and end tokens."""
    size, comma = tokenizer.model_max_length - 2, tokenizer.get_vocab().get(",</w>")
    chunks, chunk, last = [], [], None
    for number, part in enumerate(parts):
        if number:  # a break
            chunks.append(chunk)
            chunk, last = [], None
        for text, weight in part:
            for token in tokenizer(text, add_special_tokens=False).input_ids:
                if token == comma:
                    last = len(chunk)
                elif len(chunk) == size and last is not None and len(chunk) - last <= 20:
                    moved = chunk[last + 1 :]
                    chunks.append(chunk[: last + 1])
                    chunk, last = moved, None
                if len(chunk) == size:
                    chunks.append(chunk)
                    chunk, last = [], None
                chunk.append((token, weight))
    return [*chunks, chunk] if chunk or not chunks else chunks


def a1111_states(states: torch.Tensor, weights: Sequence[float]) -> torch.Tensor:
    """Emphasis of one chunk's states ``(L, D)`` in float64."""
    z = states.double()
    changed = z * torch.tensor(weights, dtype=torch.float64)[:, None]
    return changed * (z.mean() / changed.mean())


def a1111(tokenizer: Any, encoder: Any, parts: Sequence[Part], hidden: int | None) -> tuple[torch.Tensor, Any]:
    """States of all chunks ``(L, D)`` in float64, and the pooled vector of the first."""
    rows, pooled = [], None
    for chunk in a1111_chunks(tokenizer, parts):
        fill = tokenizer.model_max_length - 2 - len(chunk)
        ids = [tokenizer.bos_token_id, *(token for token, _ in chunk), tokenizer.eos_token_id]
        with torch.no_grad():
            out = encoder(torch.tensor([ids + [tokenizer.pad_token_id] * fill]), output_hidden_states=True)
        states = out[0][0] if hidden is None else out.hidden_states[hidden][0]
        rows.append(a1111_states(states, [1.0, *(weight for _, weight in chunk), 1.0, *[1.0] * fill]))
        pooled = out[0] if pooled is None else pooled
    return torch.cat(rows), pooled


PARTS = [
    [[("a ", 1.0), ("photo", 1.3), (" of a ", 1.0), ("dog", 1.1 * 1.1), (" cat", 1 / 1.1)]],
    [[("a photo of ", 0.4), ("sks", -1.5), (" dog, " * 40, 1.2)]],
    [[("a dog", 1.5)], [("a cat", 0.5)], [("a photo", 1.0)]],
    [[("a dog", 0.0)]],
    [[(LONG, 1.0)], [], [(LONG, 1.05)]],
]


@pytest.mark.parametrize("kind", [*CHUNKED, "emoji"])
@pytest.mark.parametrize("parts", PARTS)
def test_clip_reads_weighed_words_in_chunks_as_a1111_does(bases, kind, parts):
    base = bases(kind)
    pipe, mine = base.pipe, encoded(base, words(*parts))
    if base.family.name == "sdxl":
        first, _ = a1111(pipe.tokenizer, pipe.text_encoder, parts, -2)
        second, pooled = a1111(pipe.tokenizer_2, pipe.text_encoder_2, parts, -2)
        theirs = torch.cat([first, second], -1)
        assert torch.equal(mine.pooled, pooled)
    else:
        theirs, _ = a1111(pipe.tokenizer, pipe.text_encoder, parts, None)
    assert mine.tokens[0].shape == theirs.shape
    assert ((mine.tokens[0] - theirs).abs() <= EXACT * theirs.abs().clamp_min(1)).all()


@pytest.mark.parametrize("kind", [*CHUNKED, "emoji"])
def test_plain_prompts_are_encoded_to_the_bit_as_diffusers_does(bases, kind):
    base = bases(kind)
    for prompt in ("", "a photo of a dog", "a cat. " * 3):
        for given_as in (prompt, words([(prompt, 1.0)])):
            mine = encoded(base, given_as)
            with torch.no_grad():
                theirs = base.pipe.encode_prompt([prompt], "cpu", 1, False) if kind != "sdxl" else None
                xl = base.pipe.encode_prompt([prompt], do_classifier_free_guidance=False) if kind == "sdxl" else None
            assert torch.equal(mine.tokens, theirs[0] if xl is None else xl[0])
            assert xl is None or torch.equal(mine.pooled, xl[2])


commas = st.lists(st.sampled_from(["dog", ",", "cat", "a,", "photo"]), max_size=330).map(" ".join)


@given(st.lists(commas, min_size=1, max_size=3))
def test_chunks_are_cut_where_a1111_cuts(texts):
    tokenizer = TOKENIZER
    parts = [[(text, 1.0 + number)] for number, text in enumerate(texts)]
    wanted = a1111_chunks(tokenizer, parts)
    made = in_chunks(tokenizer, [words(*parts)])
    assert made.ids.shape == made.weights.shape == (1, len(wanted), 77)
    for chunk, ids, weights in zip(wanted, made.ids[0].tolist(), made.weights[0].tolist(), strict=True):
        end = ids.index(tokenizer.eos_token_id)
        assert list(zip(ids, weights, strict=True))[1:end] == chunk
        assert set(ids[end + 1 :]) <= {tokenizer.pad_token_id} and set(weights[end:]) == {1.0}


TOKENIZER = clip_tokenizer("!")


def test_a_comma_near_the_end_of_a_chunk_ends_it():
    comma = TOKENIZER(",", add_special_tokens=False).input_ids
    for behind, kept in ((BACKTRACK - 1, 75 - BACKTRACK + 1), (BACKTRACK, 75)):
        text = "dog " * (74 - behind) + ", " + "cat " * (behind + 5)
        ids = in_chunks(TOKENIZER, [words([(text, 1.0)])]).ids[0, 0].tolist()
        assert ids.index(TOKENIZER.eos_token_id) - 1 == kept
        assert ids[75 - behind] == comma[0]


@pytest.mark.parametrize("kind", CHUNKED)
def test_rows_are_filled_up_with_empty_chunks(bases, kind):
    base = bases(kind)
    short, long = words([("a dog", 1.0)]), words([(LONG, 1.2)])
    length = base.family.row_length(base.pipe, long, False)
    assert length % 77 == 0 and length > 77 and base.family.row_length(base.pipe, short, False) == 77
    empty = encoded(base, "").tokens
    alone = encoded(base, short).tokens
    expected = torch.cat([alone, *[empty] * (length // 77 - 1)], 1)
    filled = encoded(base, dataclasses.replace(short, length=length)).tokens
    torch.testing.assert_close(filled, expected, rtol=0, atol=0)
    together = encoded(base, short, long, words([("a cat", 0.5)])).tokens
    torch.testing.assert_close(together[0], expected[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(together[1], encoded(base, long).tokens[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", CHUNKED)
def test_a_caption_is_read_in_one_piece_or_refused(bases, kind):
    base = bases(kind)
    with pytest.raises(DoesNotFit, match="this base reads 77; shorten it"):
        base.family.check_text(base.pipe, [LONG])
    with pytest.raises(DoesNotFit, match="this base reads 77; shorten it"):
        encoded(base, LONG)
    base.family.check_text(base.pipe, [words([(LONG, 1.0)])])


# of each encoder: tokenizer, what stands before the prompt, and where its states are in the tokens
def places(base: Any) -> list[tuple[Any, str, tuple[slice, ...]]]:
    pipe, name, everything = base.pipe, base.family.name, (slice(None), slice(None))
    if name == "sd3":
        first, second = (encoder.config.hidden_size for encoder in (pipe.text_encoder, pipe.text_encoder_2))
        return [
            (pipe.tokenizer, "", (slice(77), slice(first))),
            (pipe.tokenizer_2, "", (slice(77), slice(first, first + second))),
            (pipe.tokenizer_3, "", (slice(77, None), slice(None))),
        ]
    before = f"{pipe.system_prompt} <Prompt Start> " if name == "lumina2" else ""
    return [(pipe.tokenizer_2 if name == "flux1" else pipe.tokenizer, before, everything)]


@pytest.mark.parametrize("kind", [kind for kind in WEIGHED if kind not in CHUNKED])
def test_other_encoders_weigh_the_tokens_of_the_words(bases, kind):
    base = bases(kind)
    parts = [("a photo of a ", 1.0), ("dog", 1.7), (" and a ", 1.0), ("cat", 0.25)]
    plain, mine = encoded(base, "a photo of a dog and a cat"), encoded(base, words(parts))
    expected = plain.tokens[0].double().clone()
    for tokenizer, before, where in places(base):
        states = expected[where].clone()
        ids = tokenizer(before + "a photo of a dog and a cat").input_ids
        vocabulary = {token: word for word, token in tokenizer.get_vocab().items()}
        heavy = {"dog": 1.7, "cat": 0.25}
        weights = [heavy.get(vocabulary[token].strip("▁").removesuffix("</w>"), 1.0) for token in ids]
        assert {1.7, 0.25} <= set(weights)
        counted = len(states) if plain.mask is None else int(plain.mask[0].sum())
        states[:counted] = a1111_states(states[:counted], (weights + [1.0] * counted)[:counted])
        expected[where] = states
    assert ((mine.tokens[0] - expected).abs() <= EXACT * expected.abs().clamp_min(1)).all()
    assert not torch.equal(mine.tokens, plain.tokens)
    assert (mine.pooled is None) or torch.equal(mine.pooled, plain.pooled)


@pytest.mark.parametrize("kind", WEIGHED)
def test_a_plain_row_beside_a_weighed_one_stays_as_it_is(bases, kind):
    base = bases(kind)
    heavy = words([("a ", 1.0), ("dog", 1.5)])
    plain, mixed = encoded(base, "a cat", "a dog").tokens, encoded(base, "a cat", heavy).tokens
    assert torch.equal(mixed[0], plain[0]) and not torch.equal(mixed[1], plain[1])


@pytest.mark.parametrize("kind", [kind for kind in BUILDERS if kind not in CHUNKED])
def test_parts_are_one_text_where_there_are_no_chunks(bases, kind):
    base = bases(kind)
    parts = words([("a photo of a dog", 1.0)], [("a cat", 1.0)])
    assert torch.equal(encoded(base, parts).tokens, encoded(base, "a photo of a dog a cat").tokens)


def test_a_tokenizer_that_tells_no_places_refuses_weights(bases):
    from studio.families.parts.emphasis import token_weights

    class Slow:
        is_fast = False

    assert token_weights(Slow(), ["a", words([("b", 1.0)])], 3).tolist() == [[1.0] * 3] * 2
    with pytest.raises(DoesNotFit, match="'a dog' has weights, and the Slow of this base does not say"):
        token_weights(Slow(), [words([("a dog", 1.2)])], 3)


def test_where_there_is_no_mean_to_keep_weights_alone_act():
    from studio.families.parts.emphasis import emphasised

    states = torch.tensor([[[1.0, -1.0], [2.0, -2.0]]])
    assert emphasised(states, torch.tensor([[1.0, 1.5]])).tolist() == [[[1.0, -1.0], [3.0, -3.0]]]
