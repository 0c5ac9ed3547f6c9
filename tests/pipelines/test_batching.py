"""Batches of pictures that differ in blend: in every family, for every method, by every scheduler."""

from __future__ import annotations

import numpy
import pytest
import torch

import studio
import tiny_pipelines
from studio.adapters import METHODS, Strength
from studio.errors import StudioError
from studio.pipelines import SCHEDULERS, ImagePipeline, regenerate

QUICK = ("sd1", "sdxl", "z-image", "lumina2")  # UNets; tokens of all rows in one; one text encoder for all
PROMPTS = ["a b", "c", "d e f"]
BLENDS = [
    {"dog": Strength(0.7, schedule=[(0.0, 0.2), (1.0, 1.0)]), "ink": Strength(0.5, text_encoder=0.2)},
    {},
    {"ink": Strength(-1.0)},
]


def shake(pipe, name, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in studio.state(pipe, name).values():
            if tensor.requires_grad:
                tensor += 0.1 * torch.randn(tensor.shape, generator=generator)


def same(first, second):
    return first.tobytes() == second.tobytes()


def options(kind):
    call = tiny_pipelines.CALL[kind]
    size = {name: call[name] for name in ("width", "height") if name in call}
    # four rows of the narrowest layer fill whole vectors; torch computes what is left over with other last bits
    return {"steps": 2, "batch_size": 4, **size}


@pytest.mark.parametrize(
    "kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in tiny_pipelines.BUILDERS]
)
def test_a_picture_has_the_same_bits_beside_pictures_of_other_blends(kind):
    pipe = ImagePipeline.open(tiny_pipelines.build(kind))
    family = pipe.base.family
    for seed, name in enumerate(("dog", "ink")):
        parts = (family.denoiser, *family.readers)[: 1 + 3 * seed]  # "ink" acts on the text encoders too
        studio.attach(pipe.pipe, studio.LoRA(rank=2, targets="all-linear"), name=name, components=parts, seed=seed)
        shake(pipe.pipe, name, seed)
    if "text_encoder" not in family.readers:
        pytest.skip("no text encoder")
    pipe.blend({})
    mixed = pipe.generate(PROMPTS, seeds=3, blend=BLENDS, **options(kind))
    assert not same(mixed[0], mixed[2])
    for prompt, blend, together in list(zip(PROMPTS, BLENDS, mixed, strict=True))[::2]:
        (alone,) = pipe.generate(prompt, seeds=3, blend=blend, **options(kind))
        assert same(alone, together)
    turned = pipe.generate(PROMPTS[::-1], seeds=3, blend=BLENDS[::-1], **options(kind))
    assert all(same(one, other) for one, other in zip(turned[::-1], mixed, strict=True))


@pytest.fixture(scope="module")
def sd1():
    return ImagePipeline.open(tiny_pipelines.build("sd1"))


_READS = {"tokenembedding": ["text_encoder"]}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_that_acts_on_pictures_shares_a_batch(sd1, method):
    try:
        studio.attach(sd1.pipe, METHODS[method].example(), name="own", components=_READS.get(method))
    except StudioError as error:
        pytest.skip(str(error))  # those of language models
    try:
        studio.attach(sd1.pipe, studio.LoRA(rank=2), name="other")
        shake(sd1.pipe, "own", 0), shake(sd1.pipe, "other", 1)
        blends = [{"own": 0.8}, {"other": 1.0, "own": -0.5}, {"own": 0.8}]
        asked = {"seeds": 1, "steps": 1, "batch_size": 3}
        mixed = sd1.generate(["a", "b", "c"], blend=blends, **asked)
        (alone,) = sd1.generate("b", blend=blends[1], **asked)
        assert same(alone, mixed[1])
        one = numpy.asarray(sd1.generate("b", blend=blends[1], seeds=1, steps=1)[0]).astype(int)
        assert abs(one - numpy.asarray(mixed[1]).astype(int)).max() <= 1
    finally:
        for name in studio.adapters(sd1.pipe):
            studio.detach(sd1.pipe, name)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_draws_a_picture_alone_whatever_the_blends_beside_it(sd1, name):
    for seed, adapter in enumerate(("dog", "ink")):
        if adapter not in studio.adapters(sd1.pipe):
            studio.attach(sd1.pipe, studio.LoRA(rank=2), name=adapter, seed=seed)
            shake(sd1.pipe, adapter, seed)
    blends = [{"dog": 1.0}, {"ink": 0.5}, {"dog": 0.2, "ink": 0.2}]
    asked = {"scheduler": name, "steps": 3, "batch_size": 2}
    listed = sd1.generate("a", seeds=[5, 6, 7], blend=blends, **asked)
    (alone,) = sd1.generate("a", seeds=6, blend=blends[1], **asked)
    assert same(alone, listed[1])
    assert same(sd1.generate("a", seeds=[7, 5], blend=[blends[2], blends[0]], **asked)[0], listed[2])


def test_pictures_of_the_current_blend_share_a_batch_with_others(sd1):
    drawn = []
    studio.attach(sd1.pipe, studio.LoRA(rank=2), name="now")
    shake(sd1.pipe, "now", 2)
    try:
        handle = sd1.pipe.unet.register_forward_pre_hook(lambda module, args: drawn.append(len(args[0])))
        mixed = sd1.generate(["a <now:0.3>", "b"], steps=1, batch_size=2)
        handle.remove()
        assert drawn == [4]
        assert same(mixed[1], sd1.generate("b", steps=1, batch_size=2)[0])
    finally:
        studio.detach(sd1.pipe, "now")


def test_layers_that_compute_once_for_all_pictures_part_the_batch(sd1):
    """A table of positions has one row for all prompts, so that one blend alone can act on it at a time."""
    where = ("re:.*position_embedding",)
    studio.attach(sd1.pipe, studio.LoRA(rank=2, targets=where), name="places", components=["text_encoder"])
    shake(sd1.pipe, "places", 3)
    try:
        asked = {"steps": 1, "batch_size": 2}
        mixed = sd1.generate(["a", "b"], blend=[{"places": 5.0}, {}], **asked)
        assert same(mixed[0], sd1.generate("a", blend={"places": 5.0}, **asked)[0])
        assert same(mixed[1], sd1.generate("b", blend={}, **asked)[0])
        assert not same(mixed[0], sd1.generate("a", blend={}, **asked)[0])
    finally:
        studio.detach(sd1.pipe, "places")


def test_a_picture_of_a_mixed_batch_is_regenerated_from_its_own_texts(tmp_path):
    pipe = ImagePipeline.open("emoji")
    files = []
    for seed, name in enumerate(("dog", "ink")):
        studio.attach(pipe.pipe, studio.LoRA(rank=2), name=name, seed=seed)
        shake(pipe, name, seed)
        files.append(studio.save(pipe, tmp_path / f"{name}.safetensors", name=name))
        studio.detach(pipe, name)
        pipe.load(files[-1], name=name)
    prompts = ["tiger <dog:0.7>", "rocket <ink:0@0,1@0.5>", "red heart"]
    mixed = pipe.generate(prompts, seeds=2, steps=3, batch_size=3)
    for image in mixed:
        assert same(regenerate(image, pipe=pipe), image)
    assert same(regenerate(mixed[1], adapters=files), mixed[1])
