"""What a text, a picture or a thread gets does not depend on what is asked beside it, where the context ends too."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

import studio
from studio.adapters import LoRA, PromptTuning, attach, blend
from studio.errors import BadConfig, BadFile, StudioError
from studio.pipelines import TextPipeline
from studio.pipelines.generating import passes


def test_passes_hold_rows_that_may_write_equally_much():
    assert list(passes([8, 3, 8, 8], 2)) == [(8, [0, 2]), (8, [3]), (3, [1])]
    assert list(passes([], 2)) == []


@pytest.fixture(scope="module")
def pictures():
    draw = torch.Generator().manual_seed(0)
    return [
        Image.fromarray(torch.randint(0, 256, (side, 16, 3), generator=draw, dtype=torch.uint8).numpy())
        for side in (16, 30, 9)
    ]


def test_a_completion_ends_where_its_own_context_does(tiny_language):
    pipe = TextPipeline.open(tiny_language)
    prompts, asked = ["film " * 4, "a", "film "], {"chat": False, "max_new_tokens": 200}
    alone = [pipe.complete(prompt, **asked)[0] for prompt in prompts]
    assert pipe.complete(prompts, **asked) == alone
    for made in alone:
        assert made.ended or len(pipe.base.tokens(made.prompt, chat=False)[0]) + made.tokens == pipe.base.context


@pytest.mark.parametrize("virtual", [0, 5])
def test_a_description_ends_where_its_own_context_does(tiny_vision, pictures, virtual):
    pipe, questions = TextPipeline.open(tiny_vision), ["", "x" * 30, "a"]
    if virtual:
        attach(pipe.model, PromptTuning(tokens=virtual), name="soft")
    alone = [
        pipe.caption(picture, question, max_new_tokens=200)[0]
        for picture, question in zip(pictures, questions, strict=True)
    ]
    assert pipe.caption(pictures, questions, max_new_tokens=200) == alone
    assert len({made.tokens for made in alone}) > 1 or all(made.ended for made in alone)


def test_what_is_no_picture_sound_or_question_is_refused(tiny_vision, tiny_speech, pictures):
    seeing, hearing = TextPipeline.open(tiny_vision), TextPipeline.open(tiny_speech)
    file = io.BytesIO()
    pictures[1].save(file, "JPEG")
    for images, question, error, message in (
        (5, "", BadFile, "picture=5 is no path"),
        (
            Image.open(io.BytesIO(file.getvalue()[:-200])),
            "",
            BadFile,
            "the picture cannot be read (image file is trunc",
        ),
        (pictures[0], 5, BadConfig, "a question is a text, not 5"),
        (pictures[0], ["a", "b"], BadConfig, "there are 2 questions for 1 pictures; give one for each"),
    ):
        with pytest.raises(error) as caught:
            seeing.caption(images, question)
        assert message in str(caught.value)
    with pytest.raises(BadFile, match="sound=5 is no path"):
        hearing.transcribe(5)


def test_an_error_gives_back_the_blend_and_the_mode(tiny_vision, tiny_language, pictures):
    """In a training's hands a model stays in its mode, and the standing blend stands, whatever went wrong."""
    for pipe, ask in (
        (TextPipeline.open(tiny_language), lambda pipe, **how: pipe.complete("Hi", **how)),
        (TextPipeline.open(tiny_language), lambda pipe, **how: pipe.classify("Hi", labels=("a", "b"), **how)),
        (TextPipeline.open(tiny_language, kind="encoder"), lambda pipe, **how: pipe.embed("Hi", **how)),
        (TextPipeline.open(tiny_vision), lambda pipe, **how: pipe.caption(pictures[0], **how)),
    ):
        attach(pipe.model, LoRA(rank=2, targets="attention"), name="one")
        for tensor in studio.state(pipe.model, "one").values():
            tensor.detach().fill_(1.0)
        blend(pipe.model, {"one": 0.5})
        pipe.model.train()
        with pytest.raises(StudioError, match="the model gave numbers that are not finite"):
            ask(pipe, blend={"one": 3e38})
        assert pipe.model.training and pipe.adapters["one"].strength == 0.5
