"""Threads on one pipeline: every picture is the one that its own blend makes, and the standing blend stays."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

import studio
from studio.pipelines import ImagePipeline

BLENDS: list[Any] = [{"a": 1.0}, {"b": 1.0}, {}, None]


@pytest.fixture(scope="module")
def pipe() -> ImagePipeline:
    pipe = ImagePipeline.open("emoji")
    for seed, name in enumerate("ab"):
        studio.attach(pipe.base.pipe, studio.LoRA(rank=2), name=name, seed=seed)
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for tensor in studio.state(pipe.base.pipe, name).values():
                tensor.add_(0.3 * torch.randn(tensor.shape, generator=draw)).requires_grad_(False)
    pipe.blend({"a": 0.5})
    return pipe


@pytest.mark.parametrize("each", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_four_threads_draw_what_one_draws(pipe, each) -> None:
    def draw(index: int) -> list[bytes]:
        jobs = range(each)
        return [pipe.generate("tiger", blend=BLENDS[index], seeds=[job % 3], steps=2)[0].tobytes() for job in jobs]

    wanted = [draw(index) for index in range(4)]
    assert len({pictures[0] for pictures in wanted}) == 4  # they are told apart
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(draw, range(4)))
    assert found == wanted
    strengths = {name: info.strength for name, info in pipe.adapters.items()}
    assert strengths == {"a": 0.5, "b": 0.0}
