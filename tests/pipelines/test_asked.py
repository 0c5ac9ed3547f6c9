"""What is asked of a pipeline: numbers of any library mean what they say, and all else is refused in a sentence."""

from __future__ import annotations

import numpy
import pytest
import torch

import studio
from studio.errors import BadConfig, DoesNotFit, StudioError
from studio.pipelines import ImagePipeline, TextPipeline


@pytest.fixture(scope="module")
def images(tiny_base):
    pipe = ImagePipeline.open(tiny_base)
    acting(pipe.pipe)
    return pipe


@pytest.fixture(scope="module")
def texts(tiny_language):
    pipe = TextPipeline.open(tiny_language)
    acting(pipe.model)
    return pipe


def acting(model):
    studio.attach(model, studio.LoRA(rank=2), name="dog", seed=0)
    with torch.no_grad():
        for tensor in studio.state(model, "dog").values():
            tensor.add_(0.1)
    studio.blend(model, {})


def drawn(pipe, **asked):
    return [image.tobytes() for image in pipe.generate(**{"prompt": "tiger", "steps": 1, **asked})]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"seeds": numpy.int64(3)}, {"seeds": 3}),
        ({"seeds": torch.tensor(3)}, {"seeds": 3}),
        ({"seeds": torch.arange(2)}, {"seeds": (0, 1)}),
        ({"seeds": [numpy.uint8(3)]}, {"seeds": [3]}),
        ({"steps": numpy.int64(2)}, {"steps": 2}),
        ({"guidance": torch.tensor(2.5)}, {"guidance": 2.5}),
        ({"width": torch.tensor(32), "height": numpy.int64(32)}, {"width": 32, "height": 32}),
        ({"batch_size": numpy.int64(2), "seeds": (0, 1)}, {"batch_size": 2, "seeds": (0, 1)}),
        ({"blend": {"dog": torch.tensor([0.5])}}, {"blend": {"dog": 0.5}}),
    ],
)
def test_numbers_of_numpy_and_torch_are_pythons_own(images, one, other):
    assert drawn(images, **one) == drawn(images, **other)


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ({"prompt": "a\ud800"}, "half a surrogate pair"),
        ({"prompt": ["tiger", "\udcff"]}, "half a surrogate pair"),
        ({"prompt": {"tiger": 1}}, "a prompt is a text"),
        ({"negative": "\ud800"}, "half a surrogate pair"),
        ({"negative": 3}, "a prompt is a text"),
        ({"seeds": b"12"}, r"seeds=b'12'"),
        ({"seeds": 3j}, "seeds=3j"),
        ({"seeds": numpy.array([0.5])}, "seed=0.5"),
        ({"steps": "4"}, "steps='4'"),
        ({"steps": [4]}, "steps="),
        ({"guidance": "5"}, "guidance='5'"),
        ({"guidance": 10**400}, "guidance=1000"),
        ({"guidance": torch.tensor([1.0, 2.0])}, "guidance="),
        ({"width": 64.0}, "width=64.0"),
        ({"batch_size": 1.0}, "batch_size=1.0"),
        ({"on_step": 3}, "on_step=3"),
        ({"blend": 3}, "a blend is a dict"),
        ({"blend": b"dog"}, "a blend is a dict"),
        ({"blend": {3: 1}}, "3 is no name"),
        ({"blend": {"dog": 10**400}}, "finite number"),
        ({"blend": {"dog": b"1"}}, "finite number"),
    ],
    ids=lambda value: str(value)[:30].encode("ascii", "backslashreplace").decode() if isinstance(value, dict) else "",
)
def test_what_no_picture_can_be_made_of_is_refused(images, asked, part):
    with pytest.raises(BadConfig, match=part):
        drawn(images, **asked)


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        ({"prompt": None}, "a prompt is a text"),
        ({"prompt": {"a": 1}}, "a prompt is a text"),
        ({"prompt": "\ud800"}, "half a surrogate pair"),
        *(({"max_new_tokens": value}, "max_new_tokens=") for value in (None, 1.5, "2", True, float("nan"), 0)),
        *(({"temperature": value}, "temperature=") for value in (None, "0.5", True, float("inf"), 10**400)),
        *(({"seed": value}, "seed=") for value in (None, 1.0, "3", True, 2**63)),
        *(({"batch_size": value}, "batch_size=") for value in (None, 1.5, True, [2])),
        *(({"system": value}, "a system prompt") for value in (3, b"x", "\ud800")),
        *(({"chat": value}, "chat=") for value in ("yes", 3, [])),
        ({"blend": {3: 1}}, "3 is no name"),
    ],
    ids=lambda value: str(value)[:30].encode("ascii", "backslashreplace").decode() if isinstance(value, dict) else "",
)
def test_what_no_text_can_be_written_of_is_refused(texts, asked, part):
    with pytest.raises(BadConfig, match=part):
        texts.complete(**{"prompt": "Hi.", "max_new_tokens": 2, **asked})


def test_more_tokens_than_a_context_has_are_those_it_has(texts):
    room = texts.base.context - len(texts.base.tokens("Hi.", chat=False)[0])
    wanted = texts.complete("Hi.", max_new_tokens=room, chat=False)
    assert texts.complete("Hi.", max_new_tokens=2**63, chat=False) == wanted


def test_numbers_of_libraries_write_the_same(texts):
    wanted = texts.complete("Hi.", max_new_tokens=3, temperature=0.5, seed=3)
    assert wanted == texts.complete(
        "Hi.", max_new_tokens=numpy.int64(3), temperature=torch.tensor(0.5), seed=torch.tensor(3)
    )


@pytest.mark.parametrize("strength", [1e30, 1e38])
def test_a_text_is_not_written_from_nan(texts, strength):
    with pytest.raises(StudioError, match="not finite in float32"):
        texts.complete("Hi.", max_new_tokens=2, blend={"dog": strength})


@pytest.mark.parametrize("format", ["diffusers", "kohya", "peft"])
def test_an_adapter_for_pictures_is_none_for_texts(images, texts, tmp_path, format):
    file = studio.save(
        images.pipe, tmp_path / f"a{'' if format == 'peft' else '.safetensors'}", format=format, name="dog"
    )
    with pytest.raises(DoesNotFit, match=r"is an adapter for pictures.*studio generate") as refused:
        texts.load(file, name="other")
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("format", ["diffusers", "peft"])
def test_an_adapter_for_texts_is_none_for_pictures(images, texts, tmp_path, format):
    file = studio.save(
        texts.model, tmp_path / f"a{'' if format == 'peft' else '.safetensors'}", format=format, name="dog"
    )
    with pytest.raises(DoesNotFit, match=r"is an adapter for a language model.*studio complete") as refused:
        images.load(file, name="other")
    assert len(str(refused.value)) < 400
