"""What a text, a picture or a thread gets does not depend on what is asked beside it, where the context ends too."""

from __future__ import annotations

import pytest
import torch
from PIL import Image

from studio.adapters import PromptTuning, attach
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
