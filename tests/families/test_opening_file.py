"""Bases in one file, in the names of those who trained them: whole ones, denoisers alone, and what is no base."""

from __future__ import annotations

import shutil
import socket

import pytest
import torch
from diffusers.loaders import single_file_utils
from safetensors.torch import save_file

import original_names
from studio.errors import BadFile, DoesNotFit, UnknownName
from studio.families import FAMILIES, open_base
from studio.pipelines.request import Request
from studio.pipelines.sample import draw
from tiny_pipelines import PROMPT, build

PUBLIC, TINY = 3072, 32  # widths of Flux.1


@pytest.fixture(autouse=True)
def no_hub(tmp_path, monkeypatch):
    """The hub's cache is empty, and the hub not to be asked; whoever opens a connection fails."""

    def refused(*given):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture(autouse=True, scope="module")
def tiny_flux():
    """diffusers' conversion of Flux.1 has the public width as a number in its code: the tiny one's is put there."""
    convert = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers
    code = convert.__code__
    assert PUBLIC in code.co_consts
    convert.__code__ = code.replace(co_consts=tuple(TINY if one == PUBLIC else one for one in code.co_consts))
    yield
    convert.__code__ = code


def configs_of(folder, place):
    """A copy of a folder without its weights."""
    shutil.copytree(folder, place, ignore=shutil.ignore_patterns("*.safetensors"))
    return place


def written(state, place):
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in state.items()}, place)
    return place


def picture(base):
    request = Request(
        prompt=PROMPT, seed=3, steps=2, guidance=2.0, width=96, height=64, embedded=base.defaults.embedded
    )
    return draw(base, [request], rows=1)[0]


def same(base, folder):
    torch.testing.assert_close(picture(base), picture(open_base(folder)), rtol=0, atol=1e-5)


WHOLE = {"sd1": original_names.sd1, "sdxl": original_names.sdxl, "flux1": original_names.flux}
ALONE = {
    "flux1": lambda pipe: original_names.flux_denoiser(pipe.transformer),
    "sdxl": lambda pipe: dict(original_names.under("model.diffusion_model.", original_names.ldm_unet(pipe.unet))),
    "qwen-image": lambda pipe: dict(original_names.under("model.diffusion_model.", pipe.transformer.state_dict())),
    "z-image": lambda pipe: original_names.z_image_denoiser(pipe.transformer),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_whole_checkpoint_draws_what_the_folder_draws_that_it_came_from(folders, tmp_path, kind):
    file = written(WHOLE[kind](build(kind)), tmp_path / "model.safetensors")
    base = open_base(file, config_of=configs_of(folders(kind), tmp_path / "configs"))
    assert (base.family.name, base.id, base.folder) == (kind, "model.safetensors", file)
    assert not any(part.training for part in base.pipe.components.values() if isinstance(part, torch.nn.Module))
    same(base, folders(kind))


@pytest.mark.parametrize("kind", ALONE)
def test_a_denoiser_alone_is_completed_from_a_folder(folders, tmp_path, kind):
    file = written(ALONE[kind](build(kind)), tmp_path / "denoiser.safetensors")
    with pytest.raises(
        DoesNotFit, match="holds the denoiser alone .* lacks text_encoder, .*vae: give --config-of .*such as"
    ):
        open_base(file)
    base = open_base(file, config_of=folders(kind))
    assert set(base.weights) == {"", *base.family.readers, "vae"}
    same(base, folders(kind))
    with pytest.raises(BadFile, match="not whole: the weights of its .* are missing"):
        open_base(file, config_of=configs_of(folders(kind), tmp_path / "configs"))


def test_a_checkpoint_that_lacks_a_part_takes_it_from_the_folder(folders, tmp_path):
    state = original_names.flux(build("flux1"))
    file = written(
        {name: part for name, part in state.items() if ".t5xxl." not in name}, tmp_path / "model.safetensors"
    )
    with pytest.raises(DoesNotFit, match="holds a part of a base of Flux.1 and lacks text_encoder_2: .*FLUX.1-dev"):
        open_base(file)
    same(open_base(file, config_of=folders("flux1")), folders("flux1"))


def test_the_first_families_keep_their_hash_in_one_file(folders, tmp_path):
    file = written(original_names.sd1(build("sd1")), tmp_path / "model.safetensors")
    assert open_base(file, config_of=folders("sd1")).hash == open_base(folders("sd1")).hash


def test_a_half_checkpoint_is_read_in_halves_where_it_is_large(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("studio.families.opening.dtype.SMALL", 0)
    state = {name: tensor.half() for name, tensor in original_names.sdxl(build("sdxl")).items()}
    base = open_base(written(state, tmp_path / "model.safetensors"), config_of=folders("sdxl"))
    assert (base.pipe.unet.dtype, base.pipe.text_encoder_2.dtype, base.pipe.vae.dtype) == (
        torch.float16, torch.float16, torch.float32,
    )  # fmt: skip
    assert picture(base).isfinite().all()


def test_configs_that_are_nowhere_are_named(tmp_path):
    file = written(original_names.sdxl(build("sdxl")), tmp_path / "model.safetensors")
    words = (
        "configs of such a checkpoint: .*no repository stabilityai/stable-diffusion-xl-base-1.0 .*or give --config-of"
    )
    with pytest.raises(UnknownName, match=words):
        open_base(file)
    with pytest.raises(UnknownName, match="no repository owner/name in the hub's cache"):
        open_base(file, config_of="owner/name")
    with pytest.raises(UnknownName, match="--config-of 'nowhere' is neither a folder nor a hub id"):
        open_base(file, config_of="nowhere")


def test_configs_of_another_base_are_refused(folders, tmp_path):
    file = written(original_names.sdxl(build("sdxl")), tmp_path / "model.safetensors")
    with pytest.raises(
        DoesNotFit, match="is of Stable Diffusion XL, and .*flux1 of Flux.1: name a folder of Stable Diff"
    ):
        open_base(file, config_of=folders("flux1"))
    with pytest.raises(BadFile, match="is no diffusers pipeline: it has no model_index.json"):
        open_base(file, config_of=tmp_path)


def test_a_checkpoint_with_tensors_too_many_or_too_few_is_refused(folders, tmp_path):
    state = original_names.sdxl(build("sdxl"))
    less = {name: tensor for name, tensor in state.items() if name != "model.diffusion_model.out.2.bias"}
    with pytest.raises(BadFile, match="less.safetensors lacks tensors that the configs of .*sdxl describe"):
        open_base(written(less, tmp_path / "less.safetensors"), config_of=folders("sdxl"))
    alone = {
        name: tensor
        for name, tensor in ALONE["qwen-image"](build("qwen-image")).items()
        if not name.endswith("proj_out.bias")
    }
    with pytest.raises(BadFile, match="alone.safetensors lacks tensors that the configs of .*qwen-image describe"):
        open_base(written(alone, tmp_path / "alone.safetensors"), config_of=folders("qwen-image"))
    more = state | {"model.diffusion_model.out.3.weight": torch.ones(7)}
    with pytest.raises(BadFile, match="its denoiser holds .* numbers and the one that its configs describe"):
        open_base(written(more, tmp_path / "more.safetensors"), config_of=folders("sdxl"))
    shaped = state | {"model.diffusion_model.out.2.bias": torch.ones(5)}
    with pytest.raises(BadFile, match="cannot be opened as a StableDiffusionXLPipeline with the configs of"):
        open_base(written(shaped, tmp_path / "shaped.safetensors"), config_of=folders("sdxl"))


def test_what_is_no_base_is_refused_with_what_it_is(tmp_path):
    unknown = written({"net.blocks.0.weight": torch.ones(2)}, tmp_path / "unknown.safetensors")
    with pytest.raises(DoesNotFit, match="a checkpoint of no family that is known in one file .*'net.blocks.0.weight'"):
        open_base(unknown)
    adapter = written({"lora_unet_a.lora_down.weight": torch.ones(2, 2)}, tmp_path / "adapter.safetensors")
    with pytest.raises(DoesNotFit, match="holds an adapter, not a base"):
        open_base(adapter)
    for name in ("model.ckpt", "model.pt", "model.bin"):
        (tmp_path / name).write_bytes(b"PK")
        with pytest.raises(BadFile, match="is a pickle, which can run programs, and is not read: convert it once"):
            open_base(tmp_path / name)
    (tmp_path / "model.onnx").write_bytes(b"ONNX")
    with pytest.raises(BadFile, match="is no base: a base in one file is a .safetensors checkpoint, or a .gguf file"):
        open_base(tmp_path / "model.onnx")
    (tmp_path / "model.safetensors").write_bytes(b"PK\x03\x04" + b"\xff" * 100)
    with pytest.raises(BadFile, match="is not a safetensors file: .*renamed .pt or .bin file"):
        open_base(tmp_path / "model.safetensors")


PUBLIC_KEYS = {
    "sd1": {"input_blocks.0.0.weight": (320, 4, 3, 3), "input_blocks.1.1.proj_in.weight": (320, 320, 1, 1)},
    "sd2": {"input_blocks.0.0.weight": (320, 4, 3, 3), "input_blocks.1.1.proj_in.weight": (320, 320)},
    "sdxl": {
        "input_blocks.0.0.weight": (320, 4, 3, 3), "input_blocks.4.1.proj_in.weight": (640, 640),
        "label_emb.0.0.weight": (1280, 2816),
    },
    "sd3": {"joint_blocks.0.context_block.adaLN_modulation.1.bias": (9216,)},
    "flux1": {"double_blocks.0.img_attn.norm.key_norm.scale": (128,), "vector_in.in_layer.weight": (3072, 768)},
    "flux2": {
        "double_blocks.0.img_attn.norm.key_norm.scale": (128,), "single_stream_modulation.lin.weight": (18432, 6144),
        "img_in.weight": (6144, 128),
    },
    "chroma": {
        "double_blocks.0.img_attn.norm.key_norm.scale": (128,), "distilled_guidance_layer.in_proj.bias": (5120,),
    },
    "qwen-image": {"transformer_blocks.0.img_mod.1.weight": (18432, 3072), "txt_norm.weight": (3584,)},
    "z-image": {"layers.0.adaLN_modulation.0.weight": (15360, 256), "cap_embedder.0.weight": (2560,)},
    "lumina2": {"layers.0.adaLN_modulation.1.weight": (9216, 1024), "cap_embedder.0.weight": (2304,)},
    "sana": {
        "blocks.0.cross_attn.q_linear.weight": (2240, 2240),
        "blocks.0.mlp.inverted_conv.conv.weight": (11200, 2240, 1, 1),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLIC_KEYS)
def test_public_checkpoints_are_told_by_their_names(name):
    """The keys that tell them (diffusers' own table), and their sizes at the public widths."""
    told = [one for one, family in FAMILIES.items() if family.single and family.single.tells(PUBLIC_KEYS[name])]
    assert told == [name]
    owner, _, repository = FAMILIES[name].single.configs(PUBLIC_KEYS[name]).partition("/")
    assert owner and repository


def test_every_family_that_diffusers_converts_has_a_single_form():
    assert {name for name, family in FAMILIES.items() if family.single is None} == {"pixart-sigma"}
    assert set(PUBLIC_KEYS) == {name for name, family in FAMILIES.items() if family.single is not None}


def test_the_command_line_takes_a_file_and_its_configs(folders, tmp_path):
    from click.testing import CliRunner

    from studio.cli import main

    file = written(original_names.sdxl(build("sdxl")), tmp_path / "model.safetensors")
    words = ["generate", str(file), "a dog", "--steps", "1", "--resolution", "64", "-o", str(tmp_path / "out")]
    without = CliRunner().invoke(main, words)
    assert without.exit_code == 2 and "or give --config-of" in without.stderr
    done = CliRunner().invoke(main, [*words, "--config-of", str(folders("sdxl"))])
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "out" / "0000.png").is_file()
