"""Blends that are folded into the weights while their pictures are drawn: only when asked, and given back."""

from __future__ import annotations

import importlib
import json

import pytest
import torch

import studio
from studio.errors import BadConfig, DoesNotFit
from studio.families import FAMILIES
from studio.pipelines import ImagePipeline, baking, regenerate
from tiny_pipelines import BUILDERS, FAMILY, build

SAMPLING = importlib.import_module("studio.pipelines.sample")  # as a name of the package it is the function
QUICK = ("sd1", "sdxl", "z-image")  # the others take seconds to build
KINDS = [
    pytest.param(kind, marks=() if kind in QUICK else pytest.mark.slow) for kind in BUILDERS if FAMILY[kind] in FAMILIES
]


def put(pipe: ImagePipeline, name: str, seed: int, config=None) -> None:
    studio.attach(pipe.pipe, config or studio.LoRA(rank=2), name=name)
    for number, tensor in enumerate(studio.state(pipe.pipe, name).values()):
        if tensor.is_floating_point():
            tensor.data = 0.2 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed + number))
        tensor.requires_grad_(False)


@pytest.fixture
def pipe(tiny_base) -> ImagePipeline:
    pipe = ImagePipeline.open(tiny_base)
    put(pipe, "dog", 1)
    put(pipe, "ink", 50)
    studio.blend(pipe.pipe, {"dog": 0.5})
    return pipe


@pytest.fixture
def bakes(monkeypatch) -> list[dict]:
    """The blends that are folded anew."""
    found = []
    monkeypatch.setattr(baking, "bake", lambda pipe, blend: found.append(dict(blend)) or studio.bake(pipe, blend))
    return found


def bits(pipe: ImagePipeline) -> dict[str, torch.Tensor]:
    return {key: tensor.clone() for key, tensor in pipe.pipe.unet.state_dict().items()}


def uses(picture) -> dict[str, bool]:
    return {use["name"]: bool(use.get("baked")) for use in json.loads(picture.info["studio"])["adapters"]}


BOTH = {"dog": 0.8, "ink": 0.4}


@pytest.mark.parametrize("kind", KINDS)
def test_baked_is_live_to_a_thousandth_of_a_level(kind):
    pipe = ImagePipeline.open(build(kind))
    put(pipe, "dog", 1)
    given = {"prompt": "a dog", "blend": {"dog": 0.7}, "steps": 2, "width": 64, "height": 64, "guidance": 1.0}
    pixels = []
    make = SAMPLING.draw

    def kept(*told, **more):
        made = make(*told, **more)
        pixels.append(made[0])
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SAMPLING, "draw", kept)
        pipe.generate(**given)
        pipe.generate(**given, bake=True)
        pipe.generate(**{**given, "blend": {}})
    live, baked, base = pixels
    assert float((live - baked).abs().max()) <= 1e-5 * max(1.0, float(live.abs().max()))
    assert float((live - base).abs().max()) > 1e-4  # it does something


def test_pictures_are_baked_when_asked_and_say_so(pipe, bakes):
    before = bits(pipe)
    made = pipe.generate(["a dog", "a cat"], seeds=[0, 1], blend=BOTH, steps=2, bake=True)
    assert bakes == [{name: studio.Strength(value) for name, value in BOTH.items()}]  # once for all of them
    assert all(uses(picture) == {"dog": True, "ink": True} for picture in made)
    assert all(torch.equal(before[key], tensor) for key, tensor in bits(pipe).items())
    assert not any(info.baked for info in pipe.adapters.values()) and pipe.adapters["dog"].strength == 0.5
    assert regenerate(made[3], pipe=pipe).tobytes() == made[3].tobytes()
    alone = pipe.generate("a cat", seeds=1, blend=BOTH, steps=2, bake=True)[0]
    assert alone.tobytes() == made[3].tobytes()
    by_hand = ImagePipeline(pipe.base)
    by_hand.bake(BOTH)
    assert by_hand.generate("a cat", seeds=1, steps=2)[0].tobytes() == made[3].tobytes()
    by_hand.unbake()


def test_rows_share_a_batch_of_one_blend(pipe, bakes):
    asked = {"blend": BOTH, "steps": 2, "guidance": 1.0, "batch_size": 2, "bake": True}
    many = pipe.generate(["a dog", "a cat", "a sun"], seeds=[0], **asked)
    assert len(bakes) == 1
    for prompt, picture in zip(["a dog", "a cat", "a sun"], many, strict=True):
        assert pipe.generate(prompt, seeds=[0], **asked)[0].tobytes() == picture.tobytes()
    mixed = pipe.generate(["a dog", "a cat"], seeds=[0], **{**asked, "blend": [BOTH, {"dog": 1.0}]})
    assert mixed[0].tobytes() == many[0].tobytes()


def test_never_by_itself(pipe, bakes):
    many = pipe.generate("a dog", seeds=range(16), blend=BOTH, steps=2, guidance=1.0)
    assert bakes == [] and uses(many[0]) == {"dog": False, "ink": False}


def test_each_blend_has_its_own_weights(pipe, bakes):
    blends = [{"dog": 1.0}, {"ink": 1.0}, {"dog": 1.0}, {}]
    made = pipe.generate("a dog", seeds=range(4), blend=blends, steps=2, bake=True)
    assert [list(one) for one in bakes] == [["dog"], ["ink"]]
    assert [uses(picture) for picture in made] == [{"dog": True}, {"ink": True}, {"dog": True}, {}]
    for index, blend in enumerate(blends):
        alone = pipe.generate("a dog", seeds=index, blend=blend, steps=2, bake=True)[0]
        assert alone.tobytes() == made[index].tobytes()
    current = pipe.generate("a dog", steps=2, bake=True)[0]
    assert uses(current) == {"dog": True}


def test_the_base_is_itself_between_pictures(pipe, bakes):
    before, seen = bits(pipe), []
    for made in pipe.generate_iter("a dog", seeds=range(3), blend=BOTH, steps=2, bake=True):
        seen.append(all(torch.equal(before[key], tensor) for key, tensor in bits(pipe).items()))
        assert uses(made.image) == {"dog": True, "ink": True}
        pipe.generate("a cat", blend={"dog": 1.0}, steps=1)
    assert seen == [True] * 3 and len(bakes) == 1
    for _ in pipe.generate_iter("a dog", seeds=range(3), blend=BOTH, steps=2, bake=True):
        break
    assert all(torch.equal(before[key], tensor) for key, tensor in bits(pipe).items())


@pytest.fixture
def soon(monkeypatch) -> int:
    """Folding pays after so few calls."""
    assert baking.PAYS == 30
    monkeypatch.setattr(baking, "PAYS", 6)
    return 6


def test_auto_bakes_from_so_many_calls_on(pipe, bakes, soon):
    few = pipe.generate("a dog", seeds=range(2), blend=BOTH, steps=soon // 2 - 1, bake="auto")
    assert bakes == [] and not any(uses(few[0]).values())
    many = pipe.generate("a dog", seeds=range(2), blend=BOTH, steps=soon // 2, bake="auto")
    assert len(bakes) == 1 and all(uses(many[0]).values())
    pipe.generate("a dog", seeds=range(2), blend=BOTH, steps=soon // 2, batch_size=2, bake="auto")
    assert len(bakes) == 1  # half as many calls


def test_auto_leaves_alone_what_it_cannot_fold_cheaply(pipe, bakes, monkeypatch, soon):
    asked = {"prompt": "a dog", "seeds": range(2), "steps": soon // 2, "guidance": 1.0, "bake": "auto"}
    pipe.generate(**asked, blend={"dog": studio.Strength(schedule=[(0, 0), (1, 1)])})
    monkeypatch.setenv("STUDIO_LIMITS", "baked-bytes=1")
    pipe.generate(**asked, blend=BOTH)
    monkeypatch.delenv("STUDIO_LIMITS")
    pipe.bake({"dog": 1.0})
    pipe.generate(**asked)
    assert bakes == []


def test_what_is_refused(pipe):
    with pytest.raises(BadConfig, match="True, False or 'auto'"):
        pipe.generate("a dog", bake="yes")
    with pytest.raises(DoesNotFit, match="differs by moment or place"):
        pipe.generate("a dog", blend={"dog": studio.Strength(schedule=[(0, 0), (1, 1)])}, bake=True)
    with pytest.raises(BadConfig, match="batch_size"):
        pipe.generate("a dog", blend=BOTH, batch_size=0, bake=True)
    put(
        pipe, "above", 3, studio.Bottleneck(size=2, targets=("re:unet.mid_block.attentions.0.transformer_blocks.0.ff",))
    )
    with pytest.raises(DoesNotFit, match="'above' \\(bottleneck\\) changes no weight"):
        pipe.generate("a dog", blend={"above": 1.0}, bake=True)
    pipe.bake({"dog": 1.0})
    with pytest.raises(DoesNotFit, match="call unbake first"):
        pipe.generate("a dog", bake=True)


def test_an_error_while_drawing_gives_the_weights_back(pipe, monkeypatch):
    before = bits(pipe)

    def fail(*told, **more):
        assert any(info.baked for info in pipe.adapters.values())
        raise KeyboardInterrupt

    monkeypatch.setattr(SAMPLING, "draw", fail)
    with pytest.raises(KeyboardInterrupt):
        pipe.generate("a dog", blend=BOTH, steps=2, bake=True)
    assert all(torch.equal(before[key], tensor) for key, tensor in bits(pipe).items())
