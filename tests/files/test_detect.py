"""What a file's keys tell: each is of a format and a method, or of something else that is named."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import studio
from studio.errors import BadFile, StudioError
from studio.files.detect import guess_family, sort_keys
from studio.files.format import FORMATS
from studio.files.header import TensorInfo
from studio.files.respelled import tools_of
from studio.files.spelling import Spelling

DOWN, UP = (2, 8), (8, 2)
KOHYA = ("lora_down.weight", "lora_up.weight")
PEFTS = ("lora_A.weight", "lora_B.weight")
ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
FLAT = ATTENTION.replace(".", "_")


def pair(module, ends=PEFTS):
    return {f"{module}.{ends[0]}": DOWN, f"{module}.{ends[1]}": UP}


def numbers(count):
    return {
        f"unet:{number}:{part}": shape for number in range(count) for part, shape in {"up": UP, "down": DOWN}.items()
    }


def labels(shapes):
    """Every label that a key of a file gets: format, method, family and tool of a layer, or what else it is of."""
    infos = {key: TensorInfo("F32", shape, 0, 0) for key, shape in shapes.items()}
    found = sort_keys(infos)
    family = guess_family(found, infos)[0]
    tools = tools_of(infos)
    said: dict[str, str] = dict(found.strangers)
    for layer in found.layers.values():
        spelling = layer.spelling()
        words = [layer.format.name, spelling.method, family, *tools] if isinstance(spelling, Spelling) else [spelling]
        said |= dict.fromkeys(layer.parts.values(), " ".join(word for word in words if word))
    assert said.keys() == shapes.keys()  # none is discarded
    return said


# A row of the list: what is in the file, and what each of its keys is called. Rows 1 and 2 are of containers (below).
ROWS = {
    "3 Control-LoRA": ({"lora_controlnet": (1,)}, "Control-LoRA"),
    "3 LLLite": ({f"lllite_unet_{FLAT}_to_q.down.0.weight": DOWN}, "ControlNet-LLLite"),
    "3 LLLite of a transformer": ({"lllite_dit_blocks_0_attn_qkv.cond_emb": DOWN}, "ControlNet-LLLite"),
    "3 IP-Adapter": ({"ip_adapter.1.to_k_ip.weight": DOWN, "image_proj.proj.weight": UP}, "IP-Adapter"),
    "3 Custom Diffusion": (
        {f"{ATTENTION}.processor.to_{one}_custom_diffusion.weight": DOWN for one in "kv"}, "Custom Diffusion",
    ),
    "3 checkpoint": (
        {"model.diffusion_model.input_blocks.0.0.weight": DOWN, "first_stage_model.decoder.conv_in.bias": (4,)},
        "whole checkpoint",
    ),
    "4 kohya's embedding": ({"emb_params": DOWN}, "text embedding"),
    "4 embeddings of several encoders": ({"clip_l": DOWN, "clip_g": DOWN}, "text embedding"),
    "5 cloneofsimo": (numbers(144), "diffusers lora cloneofsimo"),
    "5 cloneofsimo, wrong count": (numbers(143), "288 tensors"),
    "7 XLabs": (
        pair("double_blocks.0.processor", ("qkv_lora1.down.weight", "qkv_lora1.up.weight")),
        "diffusers lora flux1 XLabs",
    ),
    "8 diffusers' first": (
        pair(f"unet.{ATTENTION}.processor", ("to_q_lora.down.weight", "to_q_lora.up.weight")), "diffusers lora",
    ),
    "8 diffusers' first, without its component": (
        pair(f"{ATTENTION}.processor", ("to_out_lora.down.weight", "to_out_lora.up.weight")), "diffusers lora",
    ),
    "9 fal": (pair("base_model.model.double_blocks.0.img_attn.qkv"), "native lora flux1 fal"),
    "10 PEFT": (pair("base_model.model.model.layers.0.self_attn.q_proj"), "peft lora llm"),
    "11 bundled": ({"bundle_emb.foo.clip_l": DOWN, "bundle_emb.foo.string_to_param.*": DOWN}, "text embedding"),
    "12 kohya's OFT": ({f"oft_unet_{FLAT}_to_q.oft_blocks": (2, 4, 4), f"oft_unet_{FLAT}_to_q.alpha": ()}, "kohya oft"),
    "13 Wan-Fun": (pair("lora_unet__blocks_0_self_attn_q", KOHYA), "kohya lora wan Wan-Fun"),
    "14 OneTrainer, once": (
        pair("lora_transformer_single_transformer_blocks_0_attn_to_q", KOHYA), "kohya lora flux1",
    ),
    "15 SD1": (pair(f"lora_unet_{FLAT}_to_q", KOHYA), "kohya lora"),
    "15 SDXL": (pair("lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", KOHYA), "kohya lora sdxl"),
    "15 SD3": (pair("lora_unet_joint_blocks_0_x_block_attn_qkv", KOHYA), "kohya lora sd3"),
    "15 Flux": (pair("lora_unet_double_blocks_0_img_attn_qkv", KOHYA), "kohya lora flux1"),
    "15 Wan": (pair("lora_unet_blocks_0_self_attn_q", KOHYA), "kohya lora wan"),
    "15 Qwen-Image": (pair("lora_unet_transformer_blocks_0_img_mlp_net_2", KOHYA), "kohya lora qwen-image"),
    "15 Lumina2": (pair("lora_unet_layers_0_attention_qkv", KOHYA), "kohya lora lumina2"),
    "15 a text encoder": (pair("lora_te1_text_model_encoder_layers_0_mlp_fc1", KOHYA), "kohya lora"),
    "16 LyCORIS' wrapper": (
        {"lycoris_blocks_7_attn_to_v.lokr_w1": (2, 2), "lycoris_blocks_7_attn_to_v.lokr_w2": UP},
        "kohya lokr",
    ),
    "17 native": (pair("diffusion_model.blocks.0.self_attn.q"), "native lora wan"),
    "17 native, with what checkpoints begin with": (
        pair("model.diffusion_model.double_blocks.0.img_attn.qkv"), "native lora flux1",
    ),
    "18 a transformer": (pair("transformer.single_transformer_blocks.0.attn.to_q"), "diffusers lora flux1"),
    "18 a transformer with a native body": (
        pair("transformer.double_blocks.0.img_attn.qkv"), "diffusers lora flux1",
    ),
    "18 diffusers' second": (
        pair("text_encoder.encoder.layers.0.self_attn.q_proj.lora_linear_layer", ("down.weight", "up.weight")),
        "diffusers lora",
    ),
    "19 ComfyUI's encoders": (
        pair("text_encoders.qwen25_7b.transformer.model.layers.0.self_attn.q_proj"), "native lora",
    ),
    "19 ComfyUI's encoders that kohya has too": (
        pair("text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1"), "kohya lora ComfyUI",
    ),
    "20 MLX": (
        {"model.layers.0.self_attn.q_proj.lora_a": UP, "model.layers.0.self_attn.q_proj.lora_b": DOWN},
        "mlx lora llm",
    ),
    "21 a bare UNet": (pair(f"{ATTENTION}.to_q"), "diffusers lora"),
    "21 a bare transformer": (pair("transformer_blocks.0.attn.to_q"), "diffusers lora"),
    "21 DiffSynth": (
        pair("transformer_blocks.0.attn.to_q", ("lora_A.default.weight", "lora_B.default.weight")), "diffusers lora",
    ),
    "21 bare native": (pair("single_blocks.0.linear1"), "diffusers lora flux1"),
    "21 a bare CLIP": (pair("text_model.encoder.layers.0.mlp.fc1"), "diffusers lora"),
    "22 nothing": ({"something.else": (2,), "x": (1,)}, "no tensor of a known method"),
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_every_row_of_the_list_gets_its_label(row):
    """Check 32: a minimal file per row."""
    shapes, label = ROWS[row]
    said = labels(shapes)
    if label.partition(" ")[0] in FORMATS:
        assert set(said.values()) == {label}
    else:
        assert all(label in one for one in said.values()), said


def test_a_control_lora_of_flux_is_told_by_its_norms():
    """Check 32, row 6: the norms under their native names are a layer's weights beside the LoRA."""
    said = labels({**pair("double_blocks.0.img_attn.qkv"), "double_blocks.0.img_attn.norm.query_norm.scale": (4,)})
    assert said.pop("double_blocks.0.img_attn.norm.query_norm.scale") == "diffusers lntuning flux1"
    assert set(said.values()) == {"diffusers lora flux1"}
    # alone it is the weight of a checkpoint
    alone = labels({"double_blocks.0.img_attn.norm.query_norm.scale": (4,)})
    assert "Flux control LoRA" in next(iter(alone.values()))


def test_a_mixed_file_gets_three_labels_and_nothing_is_discarded():
    """Check 32: OneTrainer's bundled embedding, and a full difference beside a LoRA."""
    mixed = {
        **pair(f"lora_unet_{FLAT}_to_q", KOHYA), f"lora_unet_{FLAT}_to_q.alpha": (),
        "bundle_emb.foo.clip_l": DOWN, "lora_unet_conv_in.diff": (4, 4, 3, 3), "lora_unet_conv_in.diff_b": (4,),
    }  # fmt: skip
    said = labels(mixed)
    assert len(said) == 6 and len(set(said.values())) == 3
    assert {"kohya lora", "kohya full"} < set(said.values())
    assert "text embedding" in said["bundle_emb.foo.clip_l"]


CONTAINERS = {
    "1 GGUF": (b"GGUF\x03\0\0\0" + b"\0" * 64, "GGUF file"),
    "2 a renamed zip": (b"PK\x03\x04" + b"\0" * 64, "renamed .pt or .bin"),
    "2 a renamed pickle": (b"\x80\x02}q\0." + b"\0" * 64, "renamed .pt or .bin"),
}


@pytest.mark.parametrize("row", CONTAINERS)
def test_containers_are_told_by_their_first_bytes(row, tmp_path):
    """Check 32, rows 1 and 2."""
    content, says = CONTAINERS[row]
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(BadFile, match=says):
        studio.inspect(tmp_path / "a.safetensors")


PICKLED = {
    "2 a list of pairs": ([torch.ones(8, 2), torch.ones(2, 8)], "cloneofsimo"),
    "2 wrapped": ({"state_dict": {"0.lora_A.weight": torch.ones(2, 8), "0.lora_B.weight": torch.ones(8, 2)}}, ""),
}


@pytest.mark.parametrize("row", PICKLED)
def test_pickles_are_told_by_what_they_hold(row, tmp_path):
    """Check 32, row 2."""
    content, says = PICKLED[row]
    torch.save(content, tmp_path / "a.pt")
    net = nn.Sequential(nn.Linear(8, 8))
    if not says:
        assert studio.load(net, tmp_path / "a.pt", pickled=True).sites == ("0",)
        return
    with pytest.raises(BadFile, match=says):
        studio.load(net, tmp_path / "a.pt", pickled=True)


@pytest.mark.parametrize("row", [row for row in ROWS if row.startswith(("3", "22"))])
def test_what_is_no_adapter_is_refused_by_name(row, tmp_path):
    """Custom Diffusion, ControlNets, checkpoints: loading says what inspect says."""
    shapes, label = ROWS[row]
    save_file({key: torch.ones(shape) for key, shape in shapes.items()}, tmp_path / "a.safetensors")
    found = studio.inspect(tmp_path / "a.safetensors")
    assert found.method == "" and found.unread.keys() == shapes.keys()
    with pytest.raises(StudioError, match=label):
        studio.load(nn.Sequential(nn.Linear(8, 8)), tmp_path / "a.safetensors")


def test_inspect_says_whose_spelling_it_is(tmp_path):
    shapes, _ = ROWS["7 XLabs"]
    save_file({key: torch.ones(shape) for key, shape in shapes.items()}, tmp_path / "a.safetensors")
    assert studio.inspect(tmp_path / "a.safetensors").tools == ("XLabs",)
