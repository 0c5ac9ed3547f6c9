"""The names of well-known files, at real size: every layer of them is found, without any weights of a base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
from diffusers.loaders import single_file_utils

from studio.files.detect import guess_family, sort_keys
from studio.files.format import Source
from studio.files.header import TensorInfo
from studio.files.names import Names
from studio.files.reading import read_layers
from tiny_pipelines.real import REAL, real

CLIP = [f"self_attn_{one}_proj" for one in ("q", "k", "v", "out")] + ["mlp_fc1", "mlp_fc2"]
BLOCK = [f"attn{n}_{one}" for n in (1, 2) for one in ("to_q", "to_k", "to_v", "to_out_0")] + [
    "ff_net_0_proj",
    "ff_net_2",
]
STREAM = ["attn_qkv", "attn_proj", "mlp_0", "mlp_2"]
MLP = ["feed_forward_w1", "feed_forward_w2", "feed_forward_w3"]
SD3 = ["attn_qkv", "attn_proj", "mlp_fc1", "mlp_fc2", "adaLN_modulation_1"]
QWEN = [f"attn_{one}" for one in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj", "to_out_0",
                                 "to_add_out")] + [f"{one}_mlp_net_{end}" for one in ("img", "txt")
                                                   for end in ("0_proj", "2")]  # fmt: skip


def transformers_of(places):
    """kohya's layers of a U-Net's transformers: ``place -> depth``."""
    for place, depth in places.items():
        yield from (f"lora_unet_{place}_proj_in", f"lora_unet_{place}_proj_out")
        yield from (f"lora_unet_{place}_transformer_blocks_{n}_{one}" for n in range(depth) for one in BLOCK)


def clip(prefix, layers):
    return [f"{prefix}_text_model_encoder_layers_{n}_{one}" for n in range(layers) for one in CLIP]


def flux(double, single, modulated):
    mod = ["mod_lin"] if modulated else []
    both = [f"double_blocks_{n}_{side}_{one}" for n in range(double) for side in ("img", "txt") for one in STREAM + mod]
    ones = ["linear1", "linear2", *(["modulation_lin"] if modulated else [])]
    return [f"lora_unet_{one}" for one in both + [f"single_blocks_{n}_{one}" for n in range(single) for one in ones]]


def sd3(blocks, dual=0):
    names = [f"{n}_{side}_{one}" for n in range(blocks) for side in ("x_block", "context_block") for one in SD3]
    last = [f"{blocks - 1}_context_block_{one}" for one in ("attn_proj", "mlp_fc1", "mlp_fc2")]
    second = [f"{n}_x_block_attn2_{one}" for n in range(dual) for one in ("qkv", "proj")]
    return [f"lora_unet_joint_blocks_{one}" for one in names + second if one not in last]


def lumina2():
    attention = ["attention_qkv", "attention_out", *MLP]
    refiners = [f"context_refiner_{n}_{one}" for n in range(2) for one in attention]
    refiners += [f"noise_refiner_{n}_{one}" for n in range(2) for one in (*attention, "adaLN_modulation_1")]
    layers = [f"layers_{n}_{one}" for n in range(26) for one in (*attention, "adaLN_modulation_1")]
    return [f"lora_unet_{one}" for one in [*layers, *refiners, "final_layer_linear", "final_layer_adaLN_modulation_1"]]


def z_image():
    attention = [f"attention_{one}" for one in ("to_q", "to_k", "to_v", "to_out_0")]
    return [f"lora_unet_layers_{n}_{one}" for n in range(30) for one in attention + MLP]


SDXL = {f"input_blocks_{n}_1": 2 for n in (4, 5)} | {f"input_blocks_{n}_1": 10 for n in (7, 8)}
SDXL |= {"middle_block_1": 10} | {f"output_blocks_{n}_1": 10 for n in range(3)}
SDXL |= {f"output_blocks_{n}_1": 2 for n in (3, 4, 5)}
SD1 = {f"down_blocks_{n}_attentions_{i}": 1 for n in range(3) for i in range(2)} | {"mid_block_attentions_0": 1}
SD1 |= {f"up_blocks_{n}_attentions_{i}": 1 for n in (1, 2, 3) for i in range(3)}
# model -> the names of its tools' files; how many they are is published, or follows from their trainer's rules
FILES = {
    "sd1 unet": (list(transformers_of(SD1)), 192),
    "sd2 unet": (list(transformers_of(SD1)), 192),
    "sdxl unet": (list(transformers_of(SDXL)), 722),
    "sd3-medium": (sd3(24), 237),
    "sd3.5-medium": (sd3(24, dual=13), 263),
    "sd3.5-large": (sd3(38), 377),
    "flux.1-dev": (flux(19, 38, True), 304),
    "flux.1-schnell": (flux(19, 38, True), 304),
    "flux.2-dev": (flux(8, 48, False), 160),
    "flux.2-klein-9b": (flux(8, 24, False), 112),
    "flux.2-klein-4b": (flux(5, 20, False), 80),
    "qwen-image": ([f"lora_unet_transformer_blocks_{n}_{one}" for n in range(60) for one in QWEN], 720),
    "z-image": (z_image(), 210),
    "lumina-image-2": (lumina2(), 180),
    "chroma1": (flux(19, 38, False), 228),
    "CLIP-L": (clip("lora_te", 12), 72),
}
SLOW = dict.fromkeys(("sd2 unet", "sd3-medium", "sd3.5-large", "flux.1-schnell", "flux.2-klein-9b"), pytest.mark.slow)
FAMILY = {
    "sd1 unet": "sd1", "sd2 unet": "sd2", "sdxl unet": "sdxl", "lumina-image-2": "lumina2", "chroma1": "chroma",
    "CLIP-L": "sd1", "sd3-medium": "sd3", "sd3.5-medium": "sd3", "sd3.5-large": "sd3", "flux.1-dev": "flux1",
    "flux.1-schnell": "flux1", "flux.2-dev": "flux2", "flux.2-klein-9b": "flux2", "flux.2-klein-4b": "flux2",
}  # fmt: skip


def sizes(names, module):
    """Inputs and outputs of a layer of a file, of several layers in one where they are so natively."""
    format = next(iter(sort_keys({f"{module}.alpha": TensorInfo("F32", (), 0, 0)}).layers.values())).format
    path = format.find(names, module)
    native = names.find_native(module) if path is None else None
    sites = [names.site(one) for one in (native.paths if native else [path])]
    return sites[0].inner_shape, sum(site.rows for site in sites)


def source_of(names, modules, parts=("lora_down", "lora_up")):
    tensors = {}
    for module in modules:
        inner, rows = sizes(names, module)
        pair = torch.ones(1, *inner), torch.ones(rows, 1)
        tensors |= {f"{module}.{part}.weight": tensor for part, tensor in zip(parts, pair, strict=True)}
        tensors[f"{module}.alpha"] = torch.ones(())
    infos = {key: TensorInfo("F32", tuple(tensor.shape), 0, 0) for key, tensor in tensors.items()}
    return Source(Path("a.safetensors"), infos, tensors, {})


def dotted(names, module):
    """The same layer as programs with dotted native names have it."""
    path = names.find_flat(module)
    native = names.find_native(module) if path is None else names.native.get(path)
    return f"diffusion_model.{native.name if native is not None and native.name else names.relative(path)[1]}"


def check(names, modules, parts=("lora_down", "lora_up")):
    source = source_of(names, modules, parts)
    found = sort_keys(source.infos)
    reading = read_layers(names, source, found, "lora", None)
    assert reading.ignored == {} and len(reading.applied()) == 3 * len(set(modules))
    return guess_family(found, source.infos)[0]


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=SLOW.get(kind, ())) for kind in FILES])
def test_every_layer_of_a_tools_file_is_found(kind):
    modules, count = FILES[kind]
    assert len(set(modules)) == count
    names = Names(real(kind))
    assert check(names, modules) == FAMILY.get(kind, kind)
    if kind != "CLIP-L":
        native = [dotted(names, module) for module in modules]
        assert len(set(native)) == (150 if kind == "z-image" else count)  # ComfyUI's converter fused q, k and v
        assert check(names, native, ("lora_A", "lora_B")) == FAMILY.get(kind, kind)


def test_a_whole_file_of_sdxl_is_found():
    pipe = StableDiffusionXLPipeline(
        vae=None, unet=real("sdxl unet"), text_encoder=real("CLIP-L"), text_encoder_2=real("OpenCLIP-bigG"),
        tokenizer=None, tokenizer_2=None, scheduler=EulerDiscreteScheduler(),
    )  # fmt: skip
    modules = [*FILES["sdxl unet"][0], *clip("lora_te1", 12), *clip("lora_te2", 32)]
    assert len(set(modules)) == 722 + 72 + 192
    assert check(Names(pipe), modules) == "sdxl"
    older = [one for one in modules if one.startswith("lora_te")]  # OneTrainer's have diffusers' names of the U-Net
    older += [f"lora_unet_{path[5:].replace('.', '_')}" for path in Names(pipe).paths if path.endswith("attn1.to_q")]
    assert check(Names(pipe), older) == "sdxl"


@pytest.mark.parametrize("kind", ["sd1 unet", "sd2 unet", "sdxl unet"])
def test_a_unets_native_names_are_those_that_diffusers_reads(kind):
    """diffusers' conversion of single files moves every tensor to where the table says, itself and not a copy."""
    model = real(kind)
    names = Names(model)
    native = {
        f"model.diffusion_model.{names.native[path].name}.{end}": (f"{path}.{end}", torch.empty(1, 1, device="meta"))
        for path, _, end in (key.rpartition(".") for key in model.state_dict())
    }
    given = {key: tensor for key, (_, tensor) in native.items()}
    found = single_file_utils.convert_ldm_unet_checkpoint(dict(given), dict(model.config))
    assert found.keys() == model.state_dict().keys()
    assert all(found[ours] is tensor for ours, tensor in native.values())


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in REAL if kind.split()[-1] == "unet" or "-" in kind and kind in FILES])
def test_no_native_name_is_another_layers_in_diffusers(kind):
    names = Names(real(kind))
    for native in names.native.values():
        for path in (names.find_flat(f"lora_unet_{native.name.replace('.', '_')}"), names.find_dotted(native.name)):
            assert path is None or path in native.paths


DIFFUSERS = {
    "sd1": {"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": (768, 320)},
    "sd2": {"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": (1024, 320)},
    "sdxl": {"unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k": (2048, 640)},
    "sd3": {"transformer.transformer_blocks.0.attn.to_q": (1536, 1536)},
    "flux1": {"transformer.single_transformer_blocks.0.attn.to_q": (3072, 3072)},
    "flux2": {"transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj": (6144, 55296)},
    "qwen-image": {"transformer.transformer_blocks.0.attn.to_q": (3072, 3072)},
    "z-image": {"transformer.layers.0.attention.to_q": (3840, 3840)},
    "sana": {"transformer.transformer_blocks.0.attn2.to_k": (2240, 2240)},
    "pixart-sigma": {
        "lora_transformer_transformer_blocks_0_attn1_to_k": (1152, 1152),
        "lora_transformer_transformer_blocks_0_attn1_to_out_0": (1152, 1152),
    },
    "lumina2": {"transformer.layers.0.attn.to_k": (2304, 768)},
    "chroma": {"diffusion_model.distilled_guidance_layer.in_proj": (64, 5120)},
}
NATIVE = {
    "sdxl": {"lora_te1_text_model_encoder_layers_0_self_attn_q_proj": (768, 768),
             "lora_te2_text_model_encoder_layers_0_self_attn_q_proj": (1280, 1280)},
    "sd3": {"lora_unet_joint_blocks_0_x_block_attn_qkv": (1536, 4608),
            "lora_te2_text_model_encoder_layers_0_self_attn_q_proj": (1280, 1280)},
    "flux2": {"diffusion_model.single_blocks.0.linear1": (3072, 27648)},
    "flux1": {
        "lora_unet_single_blocks_0_linear1": (3072, 21504),
        "lora_te1_text_model_encoder_layers_0_mlp_fc1": (768, 3072),
    },
    "z-image": {"diffusion_model.layers.0.attention.qkv": (3840, 11520)},
    "lumina2": {"lora_unet_layers_0_attention_qkv": (2304, 3840)},
    "hunyuan-video": {"lora_unet_double_blocks_0_img_mlp_fc1": (3072, 12288)},
    "": {"diffusion_model.something.0.else": (8, 8)},
}  # fmt: skip


@pytest.mark.parametrize(("family", "layers"), [*DIFFUSERS.items(), *NATIVE.items()])
def test_the_family_of_a_file_is_told_from_a_few_layers(family, layers):
    infos = {}
    for module, (cols, rows) in layers.items():
        down, up = ("lora_down", "lora_up") if module.startswith("lora_") else ("lora_A", "lora_B")
        infos[f"{module}.{down}.weight"] = TensorInfo("F32", (4, cols), 0, 0)
        infos[f"{module}.{up}.weight"] = TensorInfo("F32", (rows, 4), 0, 0)
    assert guess_family(sort_keys(infos), infos)[0] == family
