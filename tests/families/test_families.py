"""Families: rows, recognition, opening bases, the embedded base."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from torch import nn

from studio.errors import BadFile, DoesNotFit, UnknownName
from studio.families import BASES, FAMILIES, Conditioning, components, family_of, open_base
from tiny import noise_for


@pytest.fixture(scope="module")
def base():
    return open_base("emoji")


def encode(base, *prompts: str) -> Conditioning:
    with torch.no_grad():
        return base.family.encode_text(base.pipe, prompts, False)


def test_the_embedded_base_computes_in_fp32_on_the_cpu(base):
    parts = base.pipe.unet, base.pipe.text_encoder, base.pipe.vae
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.float32}
    assert {p.device.type for part in parts for p in part.parameters()} == {"cpu"}
    assert not any(part.training for part in parts)
    assert (base.id, base.native, base.family.name) == ("emoji", (64, 64), "sd1")


def test_the_hash_belongs_to_the_weights_and_not_to_their_type_or_place(base, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(BASES["emoji"], copy)
    half = open_base(copy, dtype=torch.float16)
    assert half.hash == base.hash and half.id == "copy"
    with torch.no_grad():
        half.pipe.unet.conv_in.bias[0] += 1
    assert open_base(half.pipe).hash != base.hash


def test_pictures_survive_a_round_trip_through_the_latents(base):
    from studio.families.emoji_world import composite
    from studio.fidelity import _pixels

    pixels = _pixels([composite("rocket", "blue"), composite("pizza", "white")]) * 2 - 1
    with torch.no_grad():
        latents = base.family.encode_image(base.pipe, pixels, None)
        back = base.family.decode(base.pipe, latents)
    assert latents.shape == (2, 16, 8, 8)
    assert (back - pixels).abs().mean() < 0.09  # 0.045 of the range [0, 1]; measured 0.034
    assert 0.8 < latents.std() < 1.25  # scaled


def test_a_sampled_latent_follows_its_generator(base):
    pixels = torch.zeros(1, 3, 64, 64)
    with torch.no_grad():
        draw = [base.family.encode_image(base.pipe, pixels, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draw[0], draw[1]) and not torch.equal(draw[0], draw[2])


def test_prediction_equals_the_pipelines_own_step(base):
    noisy, steps = noise_for(base.pipe, 0, 1), torch.tensor([900, 10])
    conditioning = encode(base, "tiger on a blue background", "")
    with torch.no_grad():
        mine = base.family.predict(base.pipe, noisy, steps, conditioning)
        tokens, _ = base.pipe.encode_prompt(["tiger on a blue background", ""], "cpu", 1, False)
        theirs = base.pipe.unet(noisy, steps, encoder_hidden_states=tokens).sample
    assert torch.equal(mine, theirs)


def test_a_prompt_that_is_too_long_is_refused_with_the_part_that_would_be_lost(base):
    with pytest.raises(DoesNotFit, match="reads 24.*'apple purple'"):
        encode(base, "a photo of " + "red apple " * 10 + "purple")


def test_text_encoding_is_differentiable(base):
    tokens = base.family.encode_text(base.pipe, ["tiger"], False).tokens
    assert tokens.requires_grad


def test_conditioning_rows_and_cat():
    first = Conditioning(torch.arange(6.0).reshape(3, 2, 1), torch.arange(3.0)[:, None], {"size": torch.arange(3)})
    both = first.cat(first.rows([2]))
    assert both.tokens[:, 0, 0].tolist() == [0, 2, 4, 4]
    assert both.pooled.flatten().tolist() == [0, 1, 2, 2]
    assert both.extra["size"].tolist() == [0, 1, 2, 2]
    assert first.rows(slice(1, None)).tokens.shape == (2, 2, 1)


def test_components_and_family_of_pipelines_and_bare_modules(base):
    from diffusers import StableDiffusionImg2ImgPipeline

    other = StableDiffusionImg2ImgPipeline(**base.pipe.components, requires_safety_checker=False)
    for pipe in (base.pipe, other):
        assert list(components(pipe)) == ["unet", "text_encoder"]
        assert family_of(pipe) is FAMILIES["sd1"]
    assert components(base.pipe.unet) == {"": base.pipe.unet}
    assert family_of(base.pipe.unet) is family_of(base.pipe.text_encoder) is FAMILIES["sd1"]
    assert family_of(nn.Linear(2, 2)) is None and family_of(base.pipe.vae) is None


def test_a_unet_with_linear_projections_is_of_the_second_family():
    from diffusers import UNet2DConditionModel

    sizes = {"block_out_channels": (8, 8), "norm_num_groups": 4, "cross_attention_dim": 8, "attention_head_dim": 2}
    blocks = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    unet = UNet2DConditionModel(sample_size=8, layers_per_block=1, use_linear_projection=True, **sizes, **blocks)
    assert family_of(unet) is FAMILIES["sd2"]


@pytest.mark.parametrize("preset", ["attention", "attention+mlp", "all-linear", "conv", "subject", "style"])
def test_every_pattern_of_every_preset_finds_a_layer_of_the_embedded_base(base, preset):
    import fnmatch

    parts = components(base.pipe)
    for component, patterns in base.family.presets[preset].items():
        paths = [name for name, _ in parts[component].named_modules()]
        for pattern in patterns:
            assert any(fnmatch.fnmatch(f".{path}", f"*.{pattern}") for path in paths), (component, pattern)


def test_an_unknown_base_is_refused_with_the_nearest_name(tmp_path):
    with pytest.raises(UnknownName, match="did you mean 'emoji'"):
        open_base("emojis")


def test_a_folder_without_an_index_is_refused(tmp_path):
    (tmp_path / "photo.png").write_bytes(b"")
    with pytest.raises(BadFile, match=r"no model_index.json \(it holds photo.png\)"):
        open_base(tmp_path)


def test_a_broken_index_and_a_foreign_pipeline_are_refused(tmp_path):
    index = tmp_path / "model_index.json"
    index.write_text("{")
    with pytest.raises(BadFile, match="cannot be read"):
        open_base(tmp_path)
    index.write_text(json.dumps({"_class_name": "KandinskyPipeline"}))
    with pytest.raises(DoesNotFit, match="does not know"):
        open_base(tmp_path)


def test_truncated_weights_are_refused(tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(BASES["emoji"], copy)
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(BadFile, match="cannot be opened as a StableDiffusionPipeline"):
        open_base(copy)


def test_a_bare_module_is_refused_with_a_way_out():
    with pytest.raises(DoesNotFit, match="studio.attach"):
        open_base(nn.Linear(2, 2))
