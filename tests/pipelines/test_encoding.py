"""Prompts that are encoded once: equal to the bit to those that are not, and read anew when an encoder changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import studio
from studio.families import FAMILIES, open_base
from studio.families.words import Words
from studio.pipelines import ImagePipeline, encoding
from studio.pipelines.encoding import encoded, forget
from tiny_pipelines import BUILDERS, FAMILY, build

SLOW = ("sana", "flux2", "flux2-klein", "chroma", "flux1", "pixart-sigma")  # seconds each
KINDS = [
    pytest.param(kind, marks=pytest.mark.slow if kind in SLOW else ()) for kind in BUILDERS if FAMILY[kind] in FAMILIES
]


def words(text: str) -> Words:
    return Words((((text, 1.0),),))


def counted(base):
    """The base with a list of what its text encoders were given."""
    calls, encode = [], base.family.encode_text

    def noted(pipe, prompts, negative):
        calls.append([str(prompt) for prompt in prompts])
        return encode(pipe, prompts, negative)

    return replace(base, family=replace(base.family, encode_text=noted)), calls


def same(one, other) -> bool:
    parts, theirs = one.tensors(), other.tensors()
    return parts.keys() == theirs.keys() and all(torch.equal(parts[name], theirs[name]) for name in parts)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_rows_from_memory_are_those_of_the_encoders(kind):
    base, calls = counted(open_base(build(kind)))
    dog, cat, sun = words("a dog"), words("a cat"), words("a sun")
    for batch in ([dog, cat, cat], [cat, sun, dog], [dog, dog, dog], [sun, sun, cat]):
        for negative in (False, True):
            assert same(encoded(base, batch, negative), base.family.encode_text(base.pipe, batch, negative))
    ours = [call for call in calls if call.count(call[-1]) > 1 or len(set(call)) == 3]
    assert ours  # it was asked at all
    calls.clear()
    encoded(base, [dog, dog, dog], False)
    assert calls == []


@pytest.fixture
def pipe(tiny_base) -> ImagePipeline:
    return ImagePipeline.open(tiny_base)


def put(pipe: ImagePipeline, name: str, seed: int, targets: str = "re:text_encoder.*[qv]_proj") -> None:
    studio.attach(pipe.pipe, studio.LoRA(rank=2, init="gaussian", targets=(targets,)), name=name)
    for number, tensor in enumerate(studio.state(pipe.pipe, name).values()):
        tensor.data = 0.3 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed + number))
        tensor.requires_grad_(False)


def read(base, *texts: str):
    with torch.no_grad():
        return encoded(base, [words(text) for text in texts], False)


@pytest.fixture
def anew(pipe):
    """Reads a prompt and says whether the encoders were asked; what comes from memory is what they would say now."""
    base, calls = counted(pipe.base)

    def fresh() -> bool:
        calls.clear()
        found = read(base, "a dog")
        asked = bool(calls)
        with torch.no_grad():
            assert same(found, base.family.encode_text(base.pipe, [words("a dog")], False))
        return asked

    return fresh


def test_what_changes_an_encoder_is_noticed(pipe, anew):
    assert anew() and not anew()
    with torch.no_grad():
        next(pipe.pipe.text_encoder.parameters()).mul_(1.1)
    assert anew() and not anew()
    pipe.pipe.text_encoder.to(torch.float64)
    assert anew() and not anew()


def test_what_an_adapter_changes_of_an_encoder_is_noticed(pipe, anew):
    put(pipe, "dog", 1)
    assert anew() and not anew()
    studio.blend(pipe.pipe, {"dog": 0.5})
    assert anew() and not anew()
    studio.blend(pipe.pipe, {"dog": 1.0})
    assert not anew()  # as it was before
    studio.blend(pipe.pipe, {"dog": studio.Strength(text_encoder=0.5)})
    assert anew() and not anew()
    put(pipe, "ink", 2)
    assert anew() and not anew()
    studio.detach(pipe.pipe, "ink")
    put(pipe, "ink", 3)  # another of the same name
    assert anew() and not anew()
    studio.detach(pipe.pipe)
    assert anew() and not anew()


def test_a_baked_encoder_is_another(pipe, anew):
    put(pipe, "dog", 1)
    assert anew()
    pipe.bake({"dog": 2.0})
    assert anew() and not anew()
    pipe.unbake()
    assert anew() and not anew()


def test_while_an_encoder_is_trained_nothing_is_kept(pipe):
    base, calls = counted(pipe.base)
    put(pipe, "dog", 1)
    for tensor in studio.state(pipe.pipe, "dog").values():
        tensor.requires_grad_(True)
    read(base, "a dog")
    read(base, "a dog")
    assert len(calls) == 2
    studio.detach(pipe.pipe)
    encoded(base, [words("a dog")], False)  # with gradients
    encoded(base, [words("a dog")], False)
    assert len(calls) == 4


def test_an_adapter_of_the_denoiser_alone_forgets_nothing(pipe):
    base, calls = counted(pipe.base)
    read(base, "a dog")
    put(pipe, "dog", 1, "re:unet.*to_q")
    studio.blend(pipe.pipe, {"dog": 0.3})
    read(base, "a dog")
    assert len(calls) == 1


def test_rows_and_roles_have_their_own(pipe):
    base, calls = counted(pipe.base)
    read(base, "a dog")
    read(base, "a dog", "a dog")  # kernels may round otherwise for two rows
    assert calls == [["a dog"], ["a dog", "a dog"]]
    read(base, "a cat", "a dog")
    assert calls[2] == ["a cat", "a cat"]  # the other is known; the batch is filled up


def test_what_is_used_least_goes_first(pipe, monkeypatch):
    base, calls = counted(pipe.base)
    one = sum(tensor.numel() * 4 for tensor in read(base, "a dog").tensors().values())
    monkeypatch.setenv("STUDIO_LIMITS", f"cached-text-bytes={2 * one}")
    for text in ("a cat", "a dog", "a sun", "a dog"):
        read(base, text)
    assert len(calls) == 3
    read(base, "a cat")
    assert len(calls) == 4


def test_nobody_can_write_into_what_is_kept(pipe):
    first = read(pipe.base, "a dog")
    kept = first.tokens.clone()
    first.tokens.zero_()
    assert torch.equal(read(pipe.base, "a dog").tokens, kept)


def test_pictures_are_the_same_with_and_without(pipe, monkeypatch):
    put(pipe, "dog", 1)
    asked = {"prompt": ["a dog", "a dog and a cat", "a dog"], "seeds": [0, 1], "steps": 2, "batch_size": 2}
    blends = [{"dog": 0.5}, {}, {"dog": 0.5}, {}, {"dog": 1.0}, {"dog": 0.5}]
    warm = [pipe.generate(**asked, blend=blends) for _ in range(2)]
    forget(pipe.pipe)
    monkeypatch.setattr(encoding, "_acting", lambda base: None)
    cold = pipe.generate(**asked, blend=blends)
    for pictures in warm:
        assert [one.tobytes() for one in pictures] == [one.tobytes() for one in cold]
