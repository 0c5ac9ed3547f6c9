"""Flux.1 dev and schnell: a transformer over picture and text, T5's words and CLIP's pooled vector.

dev was distilled to take guidance as a number, schnell to need none; both draw in one pass.

References:
    Black Forest Labs: FLUX.1, 2024, https://github.com/black-forest-labs/flux.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from studio.families.conditioning import Conditioning, Shot
from studio.families.family import FAMILIES, Defaults, Encoder, Family, Identity, Model, Shapes, SingleFile
from studio.families.native import Clues
from studio.families.parts.emphasis import token_weights, weighed
from studio.families.parts.latents import grid, kl_channels, kl_decode, kl_encode, pack, same_channels, unpack
from studio.families.parts.marks import FLUX
from studio.families.parts.names import CLIP, T5, of_class, presets
from studio.families.parts.native import square
from studio.families.parts.renames import flux_names
from studio.families.parts.schedule import evenly, flow_shift, linear_mu
from studio.families.parts.streams import FLUX1_STREAMS
from studio.families.parts.texts import check_tokens
from studio.families.process import Flow
from studio.families.recipe import ImageRecipe
from studio.families.words import Prompts, texts

__all__ = [
    "ATTENTION",
    "DOUBLE_NAMES",
    "FEEDFORWARD",
    "FLUX1",
    "SINGLE_NAMES",
    "TOOLS",
    "embed_guidance",
    "flux_schedule",
    "like_flux2",
    "unmodulated",
]

# diffusers' script: uniform times, no weighting, 1e-4; Kohya's recipes train with an embedded guidance of 1; not
# measured here.
_RECIPE = ImageRecipe(rank=16, learning_rate=1e-4, text_encoder_learning_rate=5e-6, steps=1000, batch_size=1)

_DEV = Defaults(steps=28, embedded=3.5, trained=1.0, length=512)
_SCHNELL = Defaults(steps=4, length=256)

_JOINT = (
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj",
    "attn.to_add_out",
)  # fmt: skip
_JOINT_FEEDFORWARD = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")
ATTENTION = _JOINT
FEEDFORWARD = (*_JOINT_FEEDFORWARD, "proj_mlp", "single_transformer_blocks.*.proj_out")
TOOLS = _JOINT + _JOINT_FEEDFORWARD  # what diffusers' script takes


def flux_schedule(pipe: Any, scheduler: Any, steps: int, cells: tuple[int, int], device: Any) -> None:
    """Sets levels evenly spread, shifted by the number of image tokens where the base's are."""
    _schedule(pipe, scheduler, steps, cells, device)


_schedule = evenly(lambda config, cells, steps: linear_mu(config, (cells[0] // 2) * (cells[1] // 2)))


def embed_guidance(pipe: Any, conditioning: Conditioning, shots: Sequence[Shot]) -> Conditioning:
    """Adds the guidance ``(B,)`` that the denoiser embeds, where it embeds one."""
    if not pipe.transformer.config.guidance_embeds:
        return conditioning
    numbers = [1.0 if shot.embedded is None else shot.embedded for shot in shots]
    return replace(conditioning, extra={"guidance": torch.tensor(numbers, device=conditioning.tokens.device)})


def _length(pipe: Any) -> int:
    """dev reads 512 tokens, schnell 256."""
    return _defaults(pipe).length or 0


def check_text(pipe: Any, prompts: Prompts) -> None:
    """Checks that T5 reads prompts whole.

    Raises:
        DoesNotFit: it does not; what would have been cut off is named.
    """
    check_tokens(pipe.tokenizer_2, prompts, _length(pipe))


def encode_text(pipe: Any, prompts: Prompts, negative: bool) -> Conditioning:
    """Returns T5's states, and CLIP's pooled vector.

    Args:
        pipe: the pipeline with tokenizers and text encoders.
        prompts: B prompts.
        negative: makes no difference here.

    Raises:
        DoesNotFit: a prompt is longer than T5 reads; CLIP reads the beginning of a long one.
    """
    check_text(pipe, prompts)
    tokens, pooled, _ = pipe.encode_prompt(texts(prompts), max_sequence_length=_length(pipe))
    return weighed(Conditioning(tokens, pooled), token_weights(pipe.tokenizer_2, prompts, _length(pipe)))


def predict(pipe: Any, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    """Returns noise - picture, ``(B, C, h, w)``."""
    height, width = noisy.shape[2:]
    tokens = conditioning.tokens
    out = pipe.transformer(
        hidden_states=pack(noisy), timestep=timesteps / 1000, pooled_projections=conditioning.pooled,
        encoder_hidden_states=tokens, guidance=conditioning.extra.get("guidance"),
        txt_ids=torch.zeros(tokens.shape[1], 3, device=noisy.device),
        img_ids=grid(height // 2, width // 2, 3, noisy.new_zeros((), dtype=torch.float32)),
    ).sample  # fmt: skip
    return unpack(out, height, width)


def _defaults(pipe: Any) -> Defaults:
    return _DEV if pipe.transformer.config.guidance_embeds else _SCHNELL


def _identity(parts: Mapping[str, nn.Module]) -> Identity:
    config: Any = (parts.get("transformer") or parts[""]).config
    return Identity("flux-1-dev" if config.guidance_embeds else "flux-1-schnell", "flux1")


def _embeds(shapes: Shapes) -> bool:
    return "guidance_in.in_layer.weight" in shapes


def _tells(shapes: Shapes) -> bool:
    return {"double_blocks.0.img_attn.norm.key_norm.scale", "vector_in.in_layer.weight"} <= shapes.keys()


DOUBLE_NAMES = {
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
SINGLE_NAMES = {"linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), "linear2": ("proj_out",)}
_DOUBLE_MODULATION = {"img_mod.lin": ("norm1.linear",), "txt_mod.lin": ("norm1_context.linear",)}
_SINGLE_MODULATION = {"modulation.lin": ("norm.linear",)}
_ENDS = {
    f"{native}_in.{side}_layer": (f"time_text_embed.{ours}_embedder.linear_{number}",)
    for native, ours in (("time", "timestep"), ("vector", "text"), ("guidance", "guidance"))
    for number, side in ((1, "in"), (2, "out"))
}


def like_flux2(clues: Clues) -> bool:
    """Tells files of Flux.2 from those of Flux.1: other names, gated feed-forwards, or other widths."""
    named = "(double|single)_stream_modulation|to_qkv_mlp_proj|_ff(_context)?_linear_(in|out)"
    gated = clues.ratio(r"single_blocks_\d+_linear1$") == 9 or clues.ratio("(img|txt)_mlp_0$") == 6
    return clues.has(f"{named}|single_transformer_blocks_\\d+_attn_to_out$") or (
        clues.has(FLUX) and (gated or clues.width("_attn_(qkv|to_[qkv])$|_linear1$") in (4096, 6144))
    )


def unmodulated(clues: Clues) -> bool:
    """Tells files of Chroma: with its own layers, or where a trainer of whole blocks found no modulation."""
    whole = all(clues.has(name) for name in ("img_attn_qkv$", "img_mlp_0$", r"single_blocks_\d+_linear1$"))
    return clues.has("distilled_guidance_layer") or (whole and not clues.has("_mod(ulation)?_lin"))


_HUNYUAN = r"double_blocks_\d+_(img|txt)_(mlp_fc\d|mod_linear)$|individual_token_refiner"  # of the same blocks


def marks(clues: Clues) -> bool:
    """Tells files of Flux.1 by its blocks, and nothing of what was built like it."""
    others = like_flux2(clues) or unmodulated(clues) or clues.has(_HUNYUAN)
    return clues.has(FLUX) and not others


FLUX1 = FAMILIES.add(
    "flux1",
    Family(
        name="flux1",
        title="Flux.1",
        pipelines=("FluxPipeline",),
        denoiser="transformer",
        encoders=(
            Encoder(component="text_encoder", kohya="lora_te1", level="text_model.", label="clip_l", width=768),
            Encoder(component="text_encoder_2", kohya="lora_te3", trained=False, label="t5xxl", width=4096),
        ),
        multiple=16,
        process=Flow,
        native=square(1024),
        channels=kl_channels,
        draws=lambda pipe: same_channels(pipe, "transformer", 4 * kl_channels(pipe)),
        defaults=_defaults,
        models=(
            Model(title="dev", id="black-forest-labs/FLUX.1-dev", side=1024, defaults=_DEV),
            Model(title="schnell", id="black-forest-labs/FLUX.1-schnell", side=1024, defaults=_SCHNELL),
        ),
        recipes={"dreambooth": _RECIPE, "style": dataclasses.replace(_RECIPE, steps=1500)},
        presets=presets(
            "transformer", ATTENTION, FEEDFORWARD, {"text_encoder": CLIP, "text_encoder_2": T5}, tools=TOOLS
        ),
        kohya="lora_unet",
        names=flux_names(DOUBLE_NAMES | _DOUBLE_MODULATION, SINGLE_NAMES | _SINGLE_MODULATION, _ENDS),
        marks=marks,
        single=SingleFile(
            tells=_tells,
            configs=lambda shapes: f"black-forest-labs/FLUX.1-{'dev' if _embeds(shapes) else 'schnell'}",
            parts={
                "text_encoder": ("text_encoders.clip_l.",),
                "text_encoder_2": ("text_encoders.t5xxl.",),
                "vae": ("first_stage_model.", "vae."),
            },
        ),
        identity=_identity,
        called=("flux1", "flux-1", "flux-dev", "flux-schnell"),
        alike=("chroma",),
        recognise=of_class("transformer", "FluxTransformer2DModel"),
        check_text=check_text,
        emphasis=True,
        encode_text=encode_text,
        condition=embed_guidance,
        encode_image=kl_encode,
        decode=kl_decode,
        predict=predict,
        streams=FLUX1_STREAMS,
        schedule=flux_schedule,
        shift=flow_shift(patch=2),
    ),
)
