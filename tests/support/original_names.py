"""Checkpoints of one file: a diffusers pipeline's tensors under the names of those who trained such models."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

State = Mapping[str, Tensor]

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0", "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}  # fmt: skip


def replaced(name: str, table: Mapping[str, str]) -> str:
    """The name with its beginning exchanged."""
    begin = next((part for part in table if name.startswith(f"{part}.")), None)
    return name if begin is None else table[begin] + name[len(begin) :]


def ldm_unet(unet: Any) -> dict[str, Tensor]:
    """A UNet as CompVis and Stability named it."""
    each = unet.config.layers_per_block + 1
    table = dict(UNET)
    for block in range(len(unet.down_blocks)):
        for layer in range(each - 1):
            table[f"down_blocks.{block}.resnets.{layer}"] = f"input_blocks.{1 + block * each + layer}.0"
            table[f"down_blocks.{block}.attentions.{layer}"] = f"input_blocks.{1 + block * each + layer}.1"
        table[f"down_blocks.{block}.downsamplers.0.conv"] = f"input_blocks.{(block + 1) * each}.0.op"
    for block, part in enumerate(unet.up_blocks):
        for layer in range(each):
            table[f"up_blocks.{block}.resnets.{layer}"] = f"output_blocks.{block * each + layer}.0"
            table[f"up_blocks.{block}.attentions.{layer}"] = f"output_blocks.{block * each + layer}.1"
        behind = 2 if hasattr(part, "attentions") else 1
        table[f"up_blocks.{block}.upsamplers.0.conv"] = f"output_blocks.{block * each + each - 1}.{behind}.conv"
    named = {}
    for name, tensor in unet.state_dict().items():
        if ".resnets." in name:
            head, inner = re.fullmatch(r"(.*\.resnets\.\d+)\.(.*)", name).groups()
            name = f"{head}.{replaced(inner, RESNET)}"
        named[replaced(name, table)] = tensor
    return named


def ldm_vae(vae: Any) -> dict[str, Tensor]:
    """An AutoencoderKL as CompVis named it; its attention are 1 x 1 convolutions."""
    last = len(vae.config.up_block_types) - 1
    steps = [
        (r"down_blocks\.(\d+)\.resnets", r"down.\1.block"),
        (r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample"),
        (r"up_blocks\.(\d+)\.resnets", lambda found: f"up.{last - int(found[1])}.block"),
        (r"up_blocks\.(\d+)\.upsamplers\.0", lambda found: f"up.{last - int(found[1])}.upsample"),
        (r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}"),
        (r"mid_block\.attentions\.0", "mid.attn_1"), ("conv_norm_out", "norm_out"), ("conv_shortcut", "nin_shortcut"),
        ("group_norm", "norm"), (r"to_([qkv])\.", r"\1."), (r"to_out\.0", "proj_out"),
    ]  # fmt: skip
    named = {}
    for name, tensor in vae.state_dict().items():
        attention = ".attentions." in name and tensor.dim() == 2
        for old, new in steps:
            name = re.sub(old, new, name)
        named[name] = tensor[:, :, None, None] if attention else tensor
    return named


def clip(encoder: Any) -> dict[str, Tensor]:
    """A CLIP text encoder with the level that transformers 5 took away."""
    return {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in encoder.state_dict().items()}


def open_clip(encoder: Any) -> dict[str, Tensor]:
    """A CLIP text encoder with projection, as OpenCLIP names it: queries, keys and values are one."""
    names = {
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.final_layer_norm.weight": "ln_final.weight", "text_model.final_layer_norm.bias": "ln_final.bias",
    }  # fmt: skip
    steps = [
        (r"text_model\.encoder\.layers\.", "transformer.resblocks."), ("layer_norm", "ln_"), (r"\.fc1", ".c_fc"),
        (r"\.fc2", ".c_proj"), ("self_attn", "attn"),
    ]  # fmt: skip
    state = dict(encoder.state_dict())
    named = {"text_projection": state.pop("text_projection.weight").T}
    for name in [name for name in state if ".q_proj." in name]:
        parts = [state.pop(name.replace("q_proj", f"{which}_proj")) for which in "qkv"]
        place = name.replace(".q_proj.", ".in_proj_")
        state[place] = torch.cat(parts)
    for name, tensor in state.items():
        new = names.get(name, name)
        for old, other in steps if name not in names else []:
            new = re.sub(old, other, new)
        named[new] = tensor
    return named


def under(prefix: str, state: State) -> Iterator[tuple[str, Tensor]]:
    """The tensors with a prefix, each with memory of its own."""
    yield from ((prefix + name, tensor.detach().clone().contiguous()) for name, tensor in state.items())


def sdxl(pipe: Any) -> dict[str, Tensor]:
    """An SDXL checkpoint as A1111 and ComfyUI use it."""
    return dict([
        *under("model.diffusion_model.", ldm_unet(pipe.unet)), *under("first_stage_model.", ldm_vae(pipe.vae)),
        *under("conditioner.embedders.0.transformer.", clip(pipe.text_encoder)),
        *under("conditioner.embedders.1.model.", open_clip(pipe.text_encoder_2)),
    ])  # fmt: skip


def sd1(pipe: Any) -> dict[str, Tensor]:
    """A Stable Diffusion 1 checkpoint."""
    return dict([
        *under("model.diffusion_model.", ldm_unet(pipe.unet)), *under("first_stage_model.", ldm_vae(pipe.vae)),
        *under("cond_stage_model.transformer.", clip(pipe.text_encoder)),
    ])  # fmt: skip


def flux_denoiser(transformer: Any) -> dict[str, Tensor]:
    """A Flux.1 denoiser as Black Forest Labs named it."""
    state = dict(transformer.state_dict())
    named = {}
    tops = {
        "time_text_embed.timestep_embedder": "time_in", "time_text_embed.text_embedder": "vector_in",
        "time_text_embed.guidance_embedder": "guidance_in",
    }  # fmt: skip
    sides = {"in": "linear_1", "out": "linear_2"}
    kinds = ("weight", "bias")
    for kind in kinds:
        for old, new in tops.items():
            for side, layer in sides.items():
                if f"{old}.{layer}.{kind}" in state:
                    named[f"{new}.{side}_layer.{kind}"] = state[f"{old}.{layer}.{kind}"]
        named[f"txt_in.{kind}"] = state[f"context_embedder.{kind}"]
        named[f"img_in.{kind}"] = state[f"x_embedder.{kind}"]
        named[f"final_layer.linear.{kind}"] = state[f"proj_out.{kind}"]
        scale, shift = state[f"norm_out.linear.{kind}"].chunk(2)
        named[f"final_layer.adaLN_modulation.1.{kind}"] = torch.cat([shift, scale])
        for n in range(len(transformer.transformer_blocks)):
            named.update(_double(state, n, kind))
        for n in range(len(transformer.single_transformer_blocks)):
            named.update(_single(state, n, kind))
    return named


def _double(state: State, n: int, kind: str) -> Iterator[tuple[str, Tensor]]:
    block, new = f"transformer_blocks.{n}", f"double_blocks.{n}"
    streams = {
        "img": ("", "to_q to_k to_v", "to_out.0", "norm_q norm_k"),
        "txt": ("_context", "add_q_proj add_k_proj add_v_proj", "to_add_out", "norm_added_q norm_added_k"),
    }  # fmt: skip
    for stream, (side, three, out, norms) in streams.items():
        yield f"{new}.{stream}_mod.lin.{kind}", state[f"{block}.norm1{side}.linear.{kind}"]
        yield (
            f"{new}.{stream}_attn.qkv.{kind}",
            torch.cat([state[f"{block}.attn.{one}.{kind}"] for one in three.split()]),
        )
        yield f"{new}.{stream}_attn.proj.{kind}", state[f"{block}.attn.{out}.{kind}"]
        yield f"{new}.{stream}_mlp.0.{kind}", state[f"{block}.ff{side}.net.0.proj.{kind}"]
        yield f"{new}.{stream}_mlp.2.{kind}", state[f"{block}.ff{side}.net.2.{kind}"]
        if kind == "weight":
            for which, one in zip(("query", "key"), norms.split(), strict=True):
                yield f"{new}.{stream}_attn.norm.{which}_norm.scale", state[f"{block}.attn.{one}.weight"]


def _single(state: State, n: int, kind: str) -> Iterator[tuple[str, Tensor]]:
    block, new = f"single_transformer_blocks.{n}", f"single_blocks.{n}"
    four = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    yield f"{new}.modulation.lin.{kind}", state[f"{block}.norm.linear.{kind}"]
    yield f"{new}.linear1.{kind}", torch.cat([state[f"{block}.{one}.{kind}"] for one in four])
    yield f"{new}.linear2.{kind}", state[f"{block}.proj_out.{kind}"]
    if kind == "weight":
        for which in ("query", "key"):
            yield f"{new}.norm.{which}_norm.scale", state[f"{block}.attn.norm_{which[0]}.weight"]


def flux(pipe: Any) -> dict[str, Tensor]:
    """A Flux.1 checkpoint with all its parts, as ComfyUI uses it."""
    return dict([
        *under("model.diffusion_model.", flux_denoiser(pipe.transformer)), *under("vae.", ldm_vae(pipe.vae)),
        *under("text_encoders.clip_l.transformer.", clip(pipe.text_encoder)),
        *under("text_encoders.t5xxl.transformer.", pipe.text_encoder_2.state_dict()),
    ])  # fmt: skip


def z_image_denoiser(transformer: Any) -> dict[str, Tensor]:
    """A Z-Image denoiser as ComfyUI names it: queries, keys and values are one, and one norm is read by nobody."""
    steps = {
        "all_final_layer.2-1.": "final_layer.", "all_x_embedder.2-1.": "x_embedder.", ".to_out.0.": ".out.",
        ".norm_k.": ".k_norm.", ".norm_q.": ".q_norm.",
    }  # fmt: skip
    state = dict(transformer.state_dict())
    for name in [name for name in state if name.endswith(".to_q.weight")]:
        parts = [state.pop(name.replace("to_q", f"to_{which}")) for which in "qkv"]
        state[name.replace("to_q", "qkv")] = torch.cat(parts)
    named = {"norm_final.weight": torch.ones(transformer.config.dim)}
    for name, tensor in state.items():
        for old, new in steps.items():
            name = name.replace(old, new)
        named[name] = tensor
    return named
