"""Block weights of other tools, at the real sizes: which layer gets which number."""

from __future__ import annotations

import re

import pytest
import torch

import studio
from studio.adapters.contract.strength import Strength
from studio.adapters.targets.block_weights import BLOCK_PRESETS, Blocks
from studio.errors import BadConfig
from studio.families import FAMILIES, named_parts
from studio.families.parts.sgm import sgm_names
from tests.support.tiny_pipelines import build
from tests.support.tiny_pipelines.real import real


def linear(model):
    return [path for path, part in named_parts(model) if isinstance(part, torch.nn.Linear)]


@pytest.fixture(scope="module")
def sd1():
    unet = real("sd1 unet")
    return Blocks({"unet": linear(unet), "text_encoder": ["layers.0.fc1"]}, linear(unet), FAMILIES["sd1"]), unet


def numbers(weights, component, paths):
    strength = Strength(blocks=weights)
    return {path: strength.at(component, path) for path in paths}


@pytest.mark.parametrize("length", [17, 26])
def test_a_list_gives_every_block_its_number(sd1, length):
    """Against the U-Net's names in CompVis' code, by which lora-block-weight finds the blocks."""
    blocks, unet = sd1
    short = [("IN", n) for n in (1, 2, 4, 5, 7, 8)] + [("M", 0)] + [("OUT", n) for n in range(3, 12)]
    whole = [("IN", n) for n in range(12)] + [("M", 0)] + [("OUT", n) for n in range(12)]
    ids = {17: short, 26: whole}[length]
    given = [0.01 * (n + 2) for n in range(length)]
    expected = dict(zip(ids, given[1:], strict=True))
    found = numbers(blocks.weights(given), "unet", linear(unet))
    for native in sgm_names(linear(unet)):
        match = re.match(r"(input|middle|output)_blocks?\.(\d+)", native.name)
        (path,) = native.paths
        if match is None:
            assert found[path] == 1.0, path
            continue
        block = ("M", 0) if match[1] == "middle" else ({"input": "IN", "output": "OUT"}[match[1]], int(match[2]))
        assert found[path] == pytest.approx(expected.get(block, 0.0)), path
    assert Strength(blocks=blocks.weights(given)).at("text_encoder", "layers.0.fc1") == pytest.approx(0.02)


@pytest.mark.parametrize("preset", [name for name in BLOCK_PRESETS if name != "FLUXALL"])
def test_a_preset_is_its_list(sd1, preset):
    blocks, _ = sd1
    text = ",".join(map(str, BLOCK_PRESETS[preset]))
    assert blocks.weights(preset) == blocks.weights(text) == blocks.weights(list(BLOCK_PRESETS[preset]))


def test_single_blocks_and_spans(sd1):
    blocks, unet = sd1
    found = numbers(blocks.weights("IN04=0.5,OUT03-OUT05=0"), "unet", linear(unet))
    assert found["down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"] == 0.5
    assert found["up_blocks.1.attentions.2.transformer_blocks.0.attn1.to_q"] == 0.0
    assert found["up_blocks.2.attentions.0.transformer_blocks.0.attn1.to_q"] == 1.0


def test_the_list_of_flux():
    transformer = real("flux.1-dev")
    blocks = Blocks({"transformer": linear(transformer)}, linear(transformer), FAMILIES["flux1"])
    given = [1.0, 1.0, *(round(0.01 * n, 2) for n in range(1, 60))]
    found = numbers(blocks.weights(given), "transformer", linear(transformer))
    assert found["x_embedder"] == 0.01  # IN
    assert found["transformer_blocks.0.attn.to_q"] == 0.02  # D00
    assert found["transformer_blocks.18.attn.to_add_out"] == 0.2
    assert found["single_transformer_blocks.0.proj_mlp"] == 0.21  # S00
    assert found["single_transformer_blocks.37.attn.to_q"] == 0.58


def test_the_table_of_diffusers(sd1):
    blocks, unet = sd1
    said = {
        "text_encoder": 0.3,
        "unet": {"down": {"block_1": [0.1, 0.2], "block_2": 0.5}, "mid": 0.7, "up": {"block_1": [0.4, 0.6, 0.8]}},
    }
    weights = blocks.weights(said)
    found = numbers(weights, "unet", linear(unet))
    inside = "transformer_blocks.0.attn2.to_k"
    assert [found[f"down_blocks.1.attentions.{n}.{inside}"] for n in (0, 1)] == [0.1, 0.2]
    assert found["down_blocks.1.resnets.1.time_emb_proj"] == 0.2
    assert found[f"down_blocks.2.attentions.1.{inside}"] == 0.5
    assert found[f"mid_block.attentions.0.{inside}"] == 0.7
    assert [found[f"up_blocks.1.attentions.{n}.{inside}"] for n in (0, 1, 2)] == [0.4, 0.6, 0.8]
    assert found[f"up_blocks.2.attentions.0.{inside}"] == found["time_embedding.linear_1"] == 1.0
    assert Strength(blocks=weights).at("text_encoder", "layers.0.fc1") == 0.3


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("INSS", "did you mean 'INS'"),
        ("1,0,1", "a list of block weights has 3 numbers"),
        ("IN77=1", "no block 'IN77'"),
        ("1," * 16 + "x", "a finite number, not 'x'"),
        ("1," * 16 + "nan", "a finite number"),
        ({"unet": {"down": {"block_9": 1}}}, "no down_blocks.9"),
        ({"unet": {"down": {"block_1": [1, 2, 3, 4, 5]}}}, "5 numbers; it has 2"),
        ({"vae": 1}, "component 'vae'"),
        ({"unet": {"sideways.*": 1}}, "which no layer matches"),
    ],
)
def test_what_is_not_there_is_refused(sd1, said, message):
    with pytest.raises(BadConfig, match=message):
        sd1[0].weights(said)


@pytest.mark.parametrize("kind", ["sd1", "sdxl", "flux1", "sd3", "qwen-image", "z-image", "lumina2"])
def test_every_family_has_blocks_and_a_list_of_them(kind):
    """One number per block, in the order of ``known``; the blend takes a table as it stands."""
    pipe = build(kind)
    studio.attach(pipe, studio.LoRA(rank=2, targets="attention"), name="dog")
    family = studio.families.family_of(pipe)
    denoiser = pipe.components[family.denoiser]
    layers = {family.denoiser: [path for path in linear(denoiser) if "adapters" not in path]}
    known = Blocks(layers, layers[family.denoiser], family).known
    assert len(known) > 1
    if kind not in ("sd1", "sdxl"):
        first = [path for path in layers[family.denoiser] if re.match(r"(\w*_)?(blocks|layers)\.0\.", path)]
        prefix = first[0].split(".0.")[0]
        studio.blend(pipe, {"dog": {family.denoiser: {f"{prefix}.0.*": 0.5}}})
        (strength,) = {info.strength for info in studio.adapters(pipe).values()}
        assert strength.at(family.denoiser, first[0]) == 0.5


@pytest.fixture(scope="module")
def sdxl():
    unet = real("sdxl unet")
    return Blocks({"unet": linear(unet), "text_encoder": ["layers.0.fc1"]}, linear(unet), FAMILIES["sdxl"]), unet


@pytest.mark.parametrize("length", [12, 20, 26])
def test_the_lists_of_sdxl(sdxl, length):
    """Against the U-Net's names in Stability's code, by which lora-block-weight finds the blocks."""
    blocks, unet = sdxl
    ids = {
        12: [("IN", n) for n in (4, 5, 7, 8)] + [("M", 0)] + [("OUT", n) for n in range(6)],
        20: [("IN", n) for n in range(9)] + [("M", 0)] + [("OUT", n) for n in range(9)],
        26: [("IN", n) for n in range(12)] + [("M", 0)] + [("OUT", n) for n in range(12)],
    }[length]
    given = [0.01 * (n + 2) for n in range(length)]
    expected = dict(zip(ids, given[1:], strict=True))
    found = numbers(blocks.weights(",".join(map(str, given))), "unet", linear(unet))
    for native in sgm_names(linear(unet)):
        match = re.match(r"(input|middle|output)_blocks?\.(\d+)", native.name)
        if match is not None:
            block = ("M", 0) if match[1] == "middle" else ({"input": "IN", "output": "OUT"}[match[1]], int(match[2]))
            assert found[native.paths[0]] == pytest.approx(expected.get(block, 0.0)), native.paths


@pytest.mark.parametrize(("presets", "part"), [
    (("B-LoRA-content", "content"), "output_blocks.0.1."), (("B-LoRA-style", "style"), "output_blocks.1.1."),
])  # fmt: skip
def test_b_loras_parts_are_those_of_its_paper(sdxl, presets, part):
    """By their names in Stability's code: all of an adapter inside, nothing of it outside."""
    blocks, unet = sdxl
    natives = {path: native.name for native in sgm_names(linear(unet)) for path in native.paths}
    for preset in presets:
        found = numbers(blocks.weights(preset), "unet", linear(unet))
        assert {path for path, number in found.items() if number} == {
            path for path in found if natives[path].startswith(part)
        }
        assert set(found.values()) == {0.0, 1.0}
        assert Strength(blocks=blocks.weights(preset)).at("text_encoder", "layers.0.fc1") == 0.0


def test_globs_stand_beside_blocks(sdxl):
    blocks, unet = sdxl
    found = numbers(blocks.weights("M00=0.5,*.attn2.*=0,unet.up_blocks.1.*=0.25"), "unet", linear(unet))
    for path, number in found.items():
        expected = (0.5 if path.startswith("mid_block.") else 1) * (0.25 if path.startswith("up_blocks.1.") else 1)
        assert number == (0 if ".attn2." in path else expected), path


def test_a_part_where_an_adapter_has_nothing_is_refused(sd1, sdxl):
    with pytest.raises(BadConfig, match="no layer there"):
        sd1[0].weights("content")
    with pytest.raises(BadConfig, match="which no layer of the adapter matches"):
        sdxl[0].weights("*.attn7.*=0")
