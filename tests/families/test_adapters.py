"""Every method on every image family: trained, saved, loaded, drawn, baked, and the base's bits given back."""

from __future__ import annotations

import pytest
import torch

import studio
from studio.adapters import METHODS
from studio.families import Shot, components, open_base
from studio.pipelines import ImagePipeline
from studio.pipelines.request import Request
from studio.pipelines.sample import draw
from tiny_pipelines import BUILDERS, PROMPT, build

LAYERED = [name for name, config in METHODS.items() if "linear" in getattr(config.adapter, "kinds", ())]
DEFAULT = [("lora", kind) for kind in BUILDERS] + [(name, "flux2") for name in LAYERED if name != "lora"]
MATRIX = [
    pytest.param(name, kind, marks=() if (name, kind) in DEFAULT else pytest.mark.slow)
    for kind in BUILDERS
    for name in LAYERED
]

# its groups are written as a LoRA's columns: means over 3 or 5 of them are rounded
ROUNDED = {"qalora": 2e-5}


def pixels(base) -> torch.Tensor:
    own = base.defaults
    request = Request(
        prompt=PROMPT, seed=1, steps=2, width=96, height=64, guidance=own.guidance, embedded=own.embedded
    )  # fmt: skip
    return draw(base, [request], rows=1)[0]


def weights(pipe) -> dict[str, torch.Tensor]:
    parts = components(pipe).items()
    return {f"{name}.{key}": tensor for name, part in parts for key, tensor in part.state_dict().items()}


def trained(base) -> None:
    """Two steps that move every factor, from a start that shows."""
    family, pipe = base.family, base.pipe
    tensors = [tensor for tensor in studio.state(pipe, "new").values() if tensor.requires_grad]
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in tensors:
            tensor.add_(torch.randn(tensor.shape, generator=draw) * 0.05)
        told = family.encode_text(pipe, [PROMPT], False)
    cells = 64 // base.downscale
    noisy = torch.randn(1, family.channels(pipe), cells, cells, generator=draw)
    told = family.condition(pipe, told, [Shot(size=(64, 64), embedded=base.defaults.trained)])
    optimizer = torch.optim.SGD(tensors, lr=1e-3)
    for _ in range(2):
        time = torch.tensor([500.0]) if family.process.word == "flow" else torch.tensor([500])
        family.predict(pipe, noisy, time, told).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def check_baking(base, live) -> None:
    studio.bake(base.pipe)
    torch.testing.assert_close(pixels(base), live, rtol=0, atol=2e-4)
    studio.unbake(base.pipe)
    assert torch.equal(pixels(base), live)


@pytest.mark.parametrize(("method", "kind"), MATRIX)
def test_live_is_saved_is_baked_and_the_base_comes_back(method, kind, tmp_path):
    base = open_base(build(kind))
    pipe = base.pipe
    before = {
        f"{name}.{key}": tensor.clone()
        for name, part in components(pipe).items()
        for key, tensor in part.state_dict().items()
    }
    bare = pixels(base)
    studio.attach(pipe, METHODS[method].example(targets="attention"), name="new", seed=1)
    trained(base)
    live = pixels(base)
    assert (live - bare).abs().max() > 1e-6

    file = studio.save(pipe, tmp_path / "new.safetensors", name="new")
    again = open_base(build(kind))
    report = studio.load(again.pipe, file, trainable=True)
    assert not report.ignored
    torch.testing.assert_close(pixels(again), live, rtol=0, atol=ROUNDED.get(method, 0))
    frozen = open_base(build(kind))  # its factors are stacked, which changes the order of sums
    studio.load(frozen.pipe, file)
    torch.testing.assert_close(pixels(frozen), live, rtol=0, atol=2e-4)

    if METHODS[method].adapter.bakes:
        check_baking(base, live)
    studio.detach(pipe)
    after = {
        f"{name}.{key}": tensor for name, part in components(pipe).items() for key, tensor in part.state_dict().items()
    }
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)
    assert torch.equal(pixels(base), bare)


@pytest.mark.parametrize("kind", BUILDERS)
def test_an_adapter_of_another_family_is_refused(kind, tmp_path):
    """Naming what it was made for."""
    other = "sdxl" if kind in ("flux1", "flux1-schnell", "chroma", "sd1", "sd2") else "flux1"
    pipe = build(other)
    studio.attach(pipe, studio.LoRA(rank=2, targets="attention"))
    file = studio.save(pipe, tmp_path / "other.safetensors")
    with pytest.raises(studio.errors.StudioError, match="is an adapter for|made for|no layer|does not"):
        ImagePipeline.open(build(kind)).load(file)


@pytest.mark.parametrize("kind", BUILDERS)
def test_text_encoders_are_adapted_too(kind, tmp_path):
    base = open_base(build(kind))
    pipe, readers = base.pipe, base.family.readers
    bare = pixels(base)
    report = studio.attach(pipe, studio.LoRA(rank=2, targets="attention"), name="new", components=list(readers))
    assert {site.partition(".")[0] for site in report.sites} == set(readers)
    with torch.no_grad():
        for tensor in studio.state(pipe, "new").values():
            tensor.add_(0.1)
    live = pixels(base)
    assert (live - bare).abs().max() > 1e-6
    again = open_base(build(kind))
    studio.load(again.pipe, studio.save(pipe, tmp_path / "new.safetensors", name="new"), trainable=True)
    assert torch.equal(pixels(again), live)
