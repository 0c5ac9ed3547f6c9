"""Blends are weighed before they are drawn with: held to their strongest adapter, or remarked on, once and cheaply."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

import studio
from studio.errors import DoesNotFit
from studio.pipelines import ImagePipeline, Wanted, burning, regenerate
from studio.pipelines.burning import burn_remarks
from studio.pipelines.remarks import Remark


@pytest.fixture
def pipe(tiny_base) -> ImagePipeline:
    """A tiny base with two adapters of the same change and one of another."""
    pipe = ImagePipeline.open(tiny_base)
    for name, seed in {"dog": 1, "twin": 1, "ink": 50}.items():
        put(pipe, studio.LoRA(rank=2), name, seed)
    studio.blend(pipe.pipe, {})
    return pipe


def put(pipe: ImagePipeline, config, name: str, seed: int) -> None:
    studio.attach(pipe.pipe, config, name=name)
    for number, tensor in enumerate(studio.state(pipe.pipe, name).values()):
        tensor.data = 0.1 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed + number))
        tensor.requires_grad_(False)


def said(pipe: ImagePipeline, blend, **more) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Remark)
        pipe.generate("a dog", blend=blend, steps=8, guidance=1.0, **more)
    return [str(one.message) for one in caught if issubclass(one.category, Remark)]


BOTH = {"dog": 1.0, "twin": 1.0}


def test_generate_remarks_on_what_burns_and_fights(pipe):
    (burns,) = said(pipe, BOTH)
    assert "dog and twin add up" in burns and "2.00 times" in burns and "normalize=True" in burns
    (fights,) = said(pipe, {"dog": 1.0, "twin": -0.9})
    assert "undo each other (cosine -1.00)" in fights
    for quiet in ({"dog": 0.6, "twin": 0.6}, {"dog": 1.0}, {"dog": 2.0}, {}, None, {"dog": 1.0, "ink": 0.5}):
        assert said(pipe, quiet) == []
    assert said(pipe, BOTH, normalize=True) == []


def test_normalize_holds_the_sum_and_the_texts_say_how(pipe):
    held = pipe.generate("a dog", blend=BOTH, normalize=True, steps=2)[0]
    alone = pipe.generate("a dog", blend={"dog": 1.0}, steps=2)[0]
    apart = max(abs(a - b) for a, b in zip(held.tobytes(), alone.tobytes(), strict=True))
    assert apart <= 1  # two halves of the same change are the change
    content = json.loads(held.info["studio"])
    assert all(use["strength"]["blocks"] for use in content["adapters"])
    assert regenerate(held, pipe=pipe).tobytes() == held.tobytes()
    by_tags = pipe.generate("a dog <dog:1.0> <twin:1.0>", normalize=True, steps=2)[0]
    assert by_tags.tobytes() == held.tobytes()
    studio.blend(pipe.pipe, BOTH)
    assert pipe.generate("a dog", normalize=True, steps=2)[0].tobytes() == held.tobytes()


def test_each_picture_has_its_own(pipe):
    wanted = [
        Wanted(prompt="a dog", blend=BOTH, normalize=True, steps=2),
        Wanted(prompt="a dog", blend=BOTH, steps=2),
        Wanted(prompt="a dog", blend={"dog": 0.4}, normalize=True, steps=2),
    ]
    held, raw, low = (made.image for made in sorted(pipe.make(wanted), key=lambda made: made.index))
    assert held.tobytes() != raw.tobytes()
    assert low.tobytes() == pipe.generate("a dog", blend={"dog": 0.4}, steps=2)[0].tobytes()


def test_what_normalize_refuses(pipe):
    with pytest.raises(DoesNotFit, match="one sample, moment and place"):
        pipe.generate("a dog", blend={"dog": studio.Strength(schedule=[(0, 0), (1, 1)])}, normalize=True, steps=2)
    pipe.bake(BOTH)
    with pytest.raises(DoesNotFit, match="call unbake first"):
        pipe.generate("a dog", normalize=True, steps=2)
    assert burn_remarks(pipe.base, [None], steps=20) == []


def test_a_blend_is_weighed_once_and_anew_when_an_adapter_is_another(pipe, monkeypatch):
    weighed = []
    overlaps = burning.overlaps
    monkeypatch.setattr(burning, "overlaps", lambda *given, **more: weighed.append(1) or overlaps(*given, **more))
    for _ in range(3):
        assert len(burn_remarks(pipe.base, [BOTH, BOTH], steps=20)) == 1
    assert len(weighed) == 1
    studio.detach(pipe.pipe, "twin")
    put(pipe, studio.LoRA(rank=2), "twin", 90)
    assert burn_remarks(pipe.base, [{"dog": 1.0, "twin": 0.4}], steps=20) == []
    assert len(weighed) == 2
    with torch.no_grad():
        for tensor in studio.state(pipe.pipe, "twin").values():  # written to, as slots are
            tensor.copy_(torch.zeros(()))
    burn_remarks(pipe.base, [{"dog": 1.0, "twin": 0.4}], steps=20)
    assert len(weighed) == 3


def test_what_would_take_long_is_not_weighed(pipe, monkeypatch):
    monkeypatch.setattr(burning, "overlaps", lambda *given, **more: pytest.fail("it was weighed"))
    assert burn_remarks(pipe.base, [BOTH], steps=4) == []
    put(pipe, studio.DoRA(rank=2), "other", 3)
    assert burn_remarks(pipe.base, [{**BOTH, "other": 1.0}], steps=20) == []
    scheduled = {"dog": 1.0, "twin": studio.Strength(schedule=[(0, 0), (1, 1)])}
    assert burn_remarks(pipe.base, [scheduled], steps=20) == []
    for tensor in studio.state(pipe.pipe, "dog").values():
        tensor.requires_grad_(True)
    assert burn_remarks(pipe.base, [BOTH], steps=20) == []
