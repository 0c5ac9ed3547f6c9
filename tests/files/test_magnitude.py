"""How far an adapter moves each layer, against the change itself in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import studio
from studio.adapters import METHODS
from studio.families import components
from studio.families.shapes import SHAPES, outline
from studio.files.magnitude import magnitudes
from studio.files.names import Names
from studio.files.places import KINDS, blocks_of, kind_of
from tests.support.tiny_pipelines import build

METHODS_HERE = [name for name, config in METHODS.items() if "linear" in config.adapter.kinds]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Conv2d(8, 6, 3), nn.Linear(8, 4))


def random(model, config):
    """A model that carries an adapter of random numbers."""
    studio.attach(model, config)
    generator = torch.Generator().manual_seed(1)
    for tensor in studio.state(model).values():
        if tensor.is_floating_point():
            tensor.data += 0.3 * torch.randn(tensor.shape, generator=generator)
    return model


def deltas(model) -> dict[str, float]:
    """What baking adds to the weights, layer by layer."""
    before = {name: module.weight.detach().double().clone() for name, module in model.named_children()}
    biases = {name: module.bias.detach().double().clone() for name, module in model.named_children()}
    studio.bake(model)
    found = {}
    for name, module in model.named_children():
        change = (module.weight.double() - before[name]).square().sum() + (
            module.bias.double() - biases[name]
        ).square().sum()
        found[name] = float(change.sqrt())
    studio.unbake(model)
    return {name: norm for name, norm in found.items() if norm}


@pytest.mark.parametrize("method", METHODS_HERE)
def test_with_the_base_it_is_what_baking_adds(method, tmp_path):
    """Every method: ``‖W_baked − W‖``, which fp32 keeps to about 1e-6."""
    model = random(net(), METHODS[method].example(targets=("0", "2")))
    file = studio.save(model, tmp_path / "a.safetensors")
    found = magnitudes(file, base=net())
    if not METHODS[method].adapter.bakes:
        assert found.measures == ("tensors",) and found.whole > 0
        return
    right = deltas(model)
    assert found.measures == ("change",) and {one.path for one in found.layers} == set(right)
    for one in found.layers:
        assert one.norm == pytest.approx(right[one.path], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("method", METHODS_HERE)
def test_without_the_bases_weights_it_is_the_same_or_says_what_it_is(method, tmp_path):
    """On the meta device: additive methods are exact; the others tell of their pair, or of a random weight."""
    model = random(net(), METHODS[method].example(targets=("0", "2")))
    file = studio.save(model, tmp_path / "a.safetensors")
    whole, bare = magnitudes(file, base=net()), magnitudes(file, base=net().to("meta"))
    (measure,) = bare.measures
    if measure == "change":
        assert bare.whole == pytest.approx(whole.whole, rel=1e-6)
    assert (measure == "pair") == (method == "dora") and bare.whole > 0


def test_doras_pair_is_told_alone(tmp_path):
    """``‖s · up @ down‖`` in float64."""
    model = random(net(), studio.DoRA(rank=2, alpha=3, targets=("0",)))
    tensors = studio.state(model)
    pair = 1.5 * tensors["0.up"].detach().double() @ tensors["0.down"].detach().double()
    file = studio.save(model, tmp_path / "a.safetensors")
    assert magnitudes(file, base=net().to("meta")).whole == pytest.approx(float(pair.norm()), rel=1e-6)


def test_a_rotation_is_told_as_a_part_of_the_weight(tmp_path):
    """IA³ with all gains 1.5 changes every weight by half of it."""
    model = net()
    studio.attach(model, studio.IA3(targets=("0",)))
    studio.state(model)["0.gain"].data.fill_(1.5)
    found = magnitudes(studio.save(model, tmp_path / "a.safetensors"), base=net().to("meta"))
    assert found.measures == ("share",) and found.whole == pytest.approx(0.5, rel=1e-6)


def test_sums_are_roots_of_sums_of_squares(tmp_path):
    pipe = build("sd1")
    random(pipe, studio.LoRA(rank=2, targets=("unet.*.to_q", "unet.*.to_k", "text_encoder.*.q_proj")))
    found = magnitudes(studio.save(pipe, tmp_path / "a.safetensors"), base=build("sd1"))
    squares = sum(one.norm**2 for one in found.layers)
    for parts in (found.blocks, found.kinds, found.cells):
        assert sum(norm**2 for norm in parts.values()) == pytest.approx(squares, rel=1e-9)
    assert found.whole == pytest.approx(squares**0.5)
    assert {tuple(kind) for kind in found.kinds} == {
        ("attention", "q"), ("attention", "k"), ("cross-attention", "q"), ("cross-attention", "k"),
    }  # fmt: skip
    assert any(block.startswith("text_encoder ") for block in found.blocks) and "M00" in found.blocks


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("sd1", [f"IN{n:02}" for n in range(12)] + ["M00"] + [f"OUT{n:02}" for n in range(12)]),
        ("sdxl", [f"IN{n:02}" for n in range(9)] + ["M00"] + [f"OUT{n:02}" for n in range(9)]),
        ("flux-dev", [f"D{n:02}" for n in range(19)] + [f"S{n:02}" for n in range(38)]),
    ],
)
def test_blocks_stand_in_the_order_of_a_pictures_way(name, blocks):
    """The names are those of block weights; the middle of a U-Net lies between its sides."""
    names = Names(outline(name, [next(iter(SHAPES[name].parts))]))
    linear = [path for path in names.paths if isinstance(names.module(path), (nn.Linear, nn.Conv2d))]
    found = list(dict.fromkeys(blocks_of(names, linear).values()))
    assert [block for block in found if block in blocks] == blocks


@pytest.mark.parametrize("name", ["sd1", "sdxl", "flux-dev", "sd3-medium", "qwen-image", "z-image", "lumina2"])
def test_layers_of_public_models_have_a_kind(name):
    """Only what stands outside of the blocks (the last projection, heads) is without one."""
    model, rest = components(outline(name)), []
    for module in model.values():
        layers = [path for path, one in module.named_modules() if isinstance(one, (nn.Linear, nn.Conv2d))]
        assert {kind_of(path) for path in layers} <= set(KINDS)
        rest += [path for path in layers if kind_of(path).group == "rest"]
    assert all(word not in path for path in rest for word in ("attn", "attention", "ff", "mlp.gate", "resnets"))
    assert len(rest) < 8
