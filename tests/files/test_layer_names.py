"""Layers by the names that other programs have for them: blocks of UNets, fused matrices, the last norm's halves."""

from __future__ import annotations

import pytest
import torch
from diffusers.loaders import lora_conversion_utils
from safetensors.torch import load_file, save_file
from torch import nn

import studio
from studio.adapters import adapters
from studio.families.shapes import outline
from studio.files.convert import convert
from studio.files.names import Names
from tests.support.tiny_pipelines import build

SHAPES = {"sd1": 282, "sdxl": 794}
MODULE = (nn.Linear, nn.Conv2d)


@pytest.fixture(scope="module")
def unets():
    return {name: Names(outline(name, ["unet"])) for name in SHAPES}


def layers(names):
    return [path for path in names.paths if isinstance(names.module(path), MODULE)]


@pytest.mark.parametrize("name", SHAPES)
def test_every_layer_of_a_unet_has_one_name_of_its_own(name, unets):
    """Check 21: 282 of SD1.5 and 794 of SDXL, each found by LDM's name, dotted and flattened, and by diffusers'."""
    names = unets[name]
    paths = layers(names)
    native = {names.native[path].name: path for path in paths}
    assert len(paths) == len(native) == SHAPES[name] == len({one.replace(".", "_") for one in native})
    for ldm, path in native.items():
        flat = f"lora_unet_{ldm.replace('.', '_')}"
        assert names.find_flat(flat) in (None, path)  # SD1's flattened names are diffusers'
        found = names.find_native(f"diffusion_model.{ldm}"), names.find_native(flat)
        assert all(one is not None and one.paths == (path,) for one in found), ldm
        assert names.find_flat(f"lora_unet_{path.removeprefix('unet.').replace('.', '_')}") == path


@pytest.mark.parametrize(
    ("name", "path", "ldm"),
    [
        ("sd1", "up_blocks.0.upsamplers.0.conv", "output_blocks.2.1.conv"),
        ("sdxl", "up_blocks.0.upsamplers.0.conv", "output_blocks.2.2.conv"),
        ("sd1", "down_blocks.1.downsamplers.0.conv", "input_blocks.6.0.op"),
        ("sdxl", "down_blocks.1.downsamplers.0.conv", "input_blocks.6.0.op"),
    ],
)
def test_samplers_stand_where_their_block_has_an_attention_or_not(name, path, ldm, unets):
    """Checks 22 and 23: LyCORIS writes 2 for every upsampler, A1111 and supermerger 1 for the first."""
    assert unets[name].native[f"unet.{path}"].name == ldm


def test_kohyas_files_of_sdxl_in_either_spelling_are_the_same_layers(unets):
    """Check 26: sd-scripts writes LDM's names, OneTrainer diffusers'."""
    names = unets["sdxl"]
    for path in layers(names):
        flat = names.native[path].name.replace(".", "_"), path.removeprefix("unet.").replace(".", "_")
        both = [names.find_flat(f"lora_unet_{one}") or names.find_native(f"lora_unet_{one}").paths[0] for one in flat]
        assert both == [path, path]


def test_with_convolutions_a_file_has_every_layer_of_sd1_and_sdxl(unets):
    """Check 27: kohya's 192 + 72, 722 + 72 + 192 and Flux' 304 are ``test_family_names``; here all 282 and 794."""
    for name, names in unets.items():
        flat = {names.flat(path): path for path in layers(names)}
        assert len(flat) == SHAPES[name] and "" not in flat
        assert sum(isinstance(names.module(path), nn.Conv2d) for path in flat.values()) > 50
        for one, path in flat.items():
            found = names.find_flat(one)
            assert found == path or (found is None and names.find_native(one).paths == (path,)), one


# -- fused -------------------------------------------------------------------------------------------------------------

QKV = "lora_unet_double_blocks_0_img_attn_qkv"
PARTS = [f"transformer.transformer_blocks.0.attn.to_{one}" for one in "qkv"]


@pytest.fixture(scope="module")
def flux():
    """Flux.1 at its own width, one block of each sort, on no memory."""
    import dataclasses

    from studio.families.family import Outline
    from studio.families.shapes import SHAPES as PUBLIC

    part = PUBLIC["flux-dev"].parts["transformer"]
    config = {**part.config, "num_layers": 1, "num_single_layers": 1}
    return Outline({"transformer": dataclasses.replace(part, config=config).build()})


def test_a_dense_fused_pair_is_taken_apart_and_put_together_bit_for_bit(flux, tmp_path):
    """Check 28: the same A for q, k and v, B by its rows; and back to the same A, B and alpha."""
    draws = torch.Generator().manual_seed(0)
    down, up = torch.randn(16, 3072, generator=draws), torch.randn(3 * 3072, 16, generator=draws)
    tensors = {f"{QKV}.lora_down.weight": down, f"{QKV}.lora_up.weight": up, f"{QKV}.alpha": torch.tensor(8.0)}
    save_file(tensors, tmp_path / "a.safetensors")
    assert convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", format="diffusers", base=flux).error == 0
    split = load_file(tmp_path / "b.safetensors")
    for index, path in enumerate(PARTS):
        assert torch.equal(split[f"{path}.lora_A.weight"], down)
        assert torch.equal(split[f"{path}.lora_B.weight"], up[3072 * index : 3072 * (index + 1)])
    convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors", format="kohya", base=flux)
    again = load_file(tmp_path / "c.safetensors")
    assert again.keys() == tensors.keys() and all(torch.equal(again[key], tensor) for key, tensor in tensors.items())


def test_split_pairs_are_one_block_diagonal_pair_and_come_back_bit_for_bit(flux, tmp_path):
    """Check 29: r 4 and alpha 4 each make A (12, 3072), B block-diagonal, alpha 12; and back to alpha 4."""
    draws, tensors, wanted = torch.Generator().manual_seed(0), {}, []
    for path in PARTS:
        down, up = torch.randn(4, 3072, generator=draws), torch.randn(3072, 4, generator=draws)
        tensors |= {f"{path}.lora_down.weight": down, f"{path}.lora_up.weight": up, f"{path}.alpha": torch.tensor(4.0)}
        wanted.append(up @ down)
    save_file(tensors, tmp_path / "a.safetensors")
    convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", format="kohya", base=flux)
    fused = load_file(tmp_path / "b.safetensors")
    down, up = fused[f"{QKV}.lora_down.weight"], fused[f"{QKV}.lora_up.weight"]
    assert down.shape == (12, 3072) and up.shape == (9216, 12) and fused[f"{QKV}.alpha"].item() == 12
    assert torch.equal(up, torch.block_diag(*(tensors[f"{path}.lora_up.weight"] for path in PARTS)))
    change = torch.cat(wanted)
    assert (up @ down - change).norm() < 1e-6 * change.norm()
    convert(tmp_path / "b.safetensors", tmp_path / "c.safetensors", format="diffusers", base=flux)
    again = load_file(tmp_path / "c.safetensors")
    for path in PARTS:
        assert torch.equal(again[f"{path}.lora_A.weight"], tensors[f"{path}.lora_down.weight"])
        assert torch.equal(again[f"{path}.lora_B.weight"], tensors[f"{path}.lora_up.weight"])
    assert studio.inspect(tmp_path / "c.safetensors").config.scale_at("transformer_blocks.0.attn.to_q") == 1


def test_what_sd_scripts_saves_with_split_qkv_is_noted(tmp_path):
    """Check 30: rank 3r beside an alpha of r, as ``split_qkv`` leaves it, acts 3 or 4 times weaker than in training.

    The report says so. There is no switch that corrects it: whether alpha was meant so is not in the file, and a
    strength of 3 at the blocks with ``qkv`` and 4 at those with ``linear1`` is what a user may give.
    """
    pipe = build("flux1")
    down, up = torch.ones(6, 32), torch.block_diag(*[torch.ones(32, 2)] * 3)
    tensors = {f"{QKV}.lora_down.weight": down, f"{QKV}.lora_up.weight": up, f"{QKV}.alpha": torch.tensor(2.0)}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"ss_network_args": '{"split_qkv": "True"}'})
    report = studio.load(pipe, tmp_path / "a.safetensors")
    assert any("3 or 4 times weaker than in training" in note for note in report.notes)
    assert adapters(pipe)["default"].config.scale_at("transformer_blocks.0.attn.to_q") == pytest.approx(1 / 3)


LAST = "final_layer.adaLN_modulation.1"


@pytest.mark.parametrize("kind", ["flux1", "flux2", "sd3"])
def test_the_halves_of_the_last_norm_change_places_in_b_and_the_bias_alone(kind, tmp_path):
    """Check 31: swap(B A) = swap(B) A; A is untouched, the bias's halves change places, twice is the identity."""
    pipe = build(kind)
    rows, cols = pipe.transformer.norm_out.linear.weight.shape
    draws = torch.Generator().manual_seed(0)
    down, up, bias = (torch.randn(shape, generator=draws) for shape in ((2, cols), (rows, 2), (rows,)))
    with_bias = pipe.transformer.norm_out.linear.bias is not None
    tensors = {f"diffusion_model.{LAST}.lora_A.weight": down, f"diffusion_model.{LAST}.lora_B.weight": up}
    tensors |= {f"diffusion_model.{LAST}.lora_B.bias": bias} if with_bias else {}
    save_file(tensors, tmp_path / "a.safetensors")
    studio.load(pipe, tmp_path / "a.safetensors")
    found = {key.rpartition(".")[2]: tensor for key, tensor in studio.state(pipe).items()}
    assert torch.equal(found["down"], down)
    assert torch.equal(found["up"], torch.cat(up.chunk(2)[::-1]))
    if with_bias:
        assert torch.equal(found["bias"], torch.cat(bias.chunk(2)[::-1]))
    assert torch.equal(found["up"] @ found["down"], torch.cat((up @ down).chunk(2)[::-1]))
    again = load_file(studio.save(pipe, tmp_path / "b.safetensors", format="native"))
    assert torch.equal(next(again[key] for key in again if "up" in key or "lora_B.weight" in key), up)
    assert torch.equal(next(again[key] for key in again if "down" in key or "lora_A.weight" in key), down)


def test_diffusers_leaves_the_halves_of_flux_2_as_they_are():
    """Check 31: a result equal to its conversion of LoRAs is a failure, as that of whole checkpoints exchanges them."""
    up = torch.arange(8.0).view(8, 1)
    tensors = {f"diffusion_model.{LAST}.lora_{side}.weight": one for side, one in (("A", torch.ones(1, 4)), ("B", up))}
    found = lora_conversion_utils._convert_non_diffusers_flux2_lora_to_diffusers(dict(tensors))
    assert torch.equal(found["transformer.norm_out.linear.lora_B.weight"], up)


def test_blocks_of_any_number_are_found_by_their_names(tmp_path):
    """Check 34: 20 and 3 blocks, of which no public model has so many; diffusers counts 19 and 38."""
    from diffusers import FluxTransformer2DModel

    from studio.families.family import Outline

    with torch.device("meta"):
        model = FluxTransformer2DModel(
            num_layers=20, num_single_layers=3, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
            pooled_projection_dim=16, axes_dims_rope=(4, 6, 6),
        )  # fmt: skip
    base, tensors = Outline({"transformer": model}), {}
    names = [f"double_blocks_{n}_{side}_attn_qkv" for n in range(20) for side in ("img", "txt")]
    for name in [*names, *(f"single_blocks_{n}_linear1" for n in range(3))]:
        rows = 96 if "qkv" in name else 96 + 128
        pair = torch.randn(2, 32), torch.randn(rows, 2)
        tensors |= {f"lora_unet_{name}.lora_{side}.weight": one for side, one in zip(("down", "up"), pair, strict=True)}
    save_file(tensors, tmp_path / "a.safetensors")
    report = convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors", format="diffusers", base=base)
    assert report.sites == 40 * 3 + 3 * 4 and report.error == 0
    assert any(key.startswith("transformer.transformer_blocks.19.attn.add_v_proj") for key in load_file(report.file))
