"""Sana: a transformer with linear attention on latents of 32 x 32 pixels, and Gemma, told to enhance the prompt.

References:
    Xie et al.: SANA: Efficient High-Resolution Image Synthesis with Linear Diffusion Transformers, 2024,
    arXiv:2410.10629.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import torch
from torch import Tensor

from studio.families.conditioning import Conditioning
from studio.families.family import FAMILIES, Defaults, Encoder, Family, Identity, Model, SingleFile
from studio.families.native import Clues
from studio.families.parts.latents import kl_channels, same_channels
from studio.families.parts.marks import UNET
from studio.families.parts.names import LANGUAGE, of_class, presets
from studio.families.parts.native import by_config
from studio.families.parts.place import device_of
from studio.families.parts.schedule import flow_shift
from studio.families.parts.streams import SANA_STREAMS
from studio.families.parts.texts import check_tokens
from studio.families.process import Flow
from studio.families.recipe import ImageRecipe
from studio.families.words import Prompts, texts

__all__ = ["SANA"]

LENGTH = 300

_DEFAULTS = Defaults(steps=20, guidance=4.5, length=LENGTH)

# diffusers' script: uniform times, no weighting, 1e-4; not measured here
_RECIPE = ImageRecipe(rank=16, learning_rate=1e-4, text_encoder_learning_rate=5e-6, steps=1000, batch_size=1)

_SELF = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0")
_CROSS = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")
_FEEDFORWARD = ("ff.conv_inverted", "ff.conv_point")


def _instruction(pipe: Any) -> list[str]:
    """What Gemma is told in front of a prompt."""
    return list(inspect.signature(pipe.__call__).parameters["complex_human_instruction"].default or ())


def encode_text(pipe: Any, prompts: Prompts, negative: bool) -> Conditioning:
    """Returns Gemma's last states of a prompt in lower case, behind the instruction unless it is a negative one.

    Args:
        pipe: the pipeline with tokenizer and text encoder.
        prompts: B prompts.
        negative: whether guidance leads away from them.

    Raises:
        DoesNotFit: a prompt is longer than Gemma reads.
    """
    check_tokens(pipe.tokenizer, prompts, LENGTH)
    told = None if negative else _instruction(pipe)
    tokens, mask, *_ = pipe.encode_prompt(
        texts(prompts), False, max_sequence_length=LENGTH, complex_human_instruction=told
    )
    return Conditioning(tokens, mask=mask.bool())


def predict(pipe: Any, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    """Returns noise - picture, ``(B, C, h, w)``."""
    return pipe.transformer(
        noisy, encoder_hidden_states=conditioning.tokens, encoder_attention_mask=conditioning.mask,
        timestep=timesteps * pipe.transformer.config.timestep_scale,
    ).sample  # fmt: skip


def encode_image(pipe: Any, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Returns scaled latents; this autoencoder has one for a picture, whatever the generator."""
    vae = pipe.vae
    return vae.encode(pixels.to(device_of(pipe, vae), vae.dtype)).latent * vae.config.scaling_factor


def decode(pipe: Any, latents: Tensor) -> Tensor:
    """The inverse of :func:`encode_image`, clipped to [-1, 1]."""
    vae = pipe.vae
    return vae.decode(latents.to(device_of(pipe, vae), vae.dtype) / vae.config.scaling_factor).sample.clamp(-1, 1)


def marks(clues: Clues) -> bool:
    """Tells files of Sana by its convolutions, or by its widths; its script trains no ``to_out``."""
    crossed = r"(^|_)transformer_blocks_\d+_attn[12]_to_[qkv]$"
    if clues.has(UNET):
        return False
    narrow = clues.width(crossed) == 1152 and not clues.has("to_out_0$|ff_net|adaln_single")
    own = clues.has("ff_conv_(inverted|depth|point)$|(^|_)time_embed_(linear$|emb_)")
    return own or narrow or clues.width(crossed) == 2240


SANA = FAMILIES.add(
    "sana",
    Family(
        name="sana",
        title="Sana",
        pipelines=("SanaPipeline",),
        denoiser="transformer",
        encoders=(Encoder(component="text_encoder", kohya="lora_te", trained=False),),
        multiple=32,
        process=Flow,
        native=by_config("transformer"),
        channels=kl_channels,
        draws=lambda pipe: same_channels(pipe, "transformer", kl_channels(pipe)),
        defaults=lambda pipe: _DEFAULTS,
        models=(
            Model(title="1.6B", id="Efficient-Large-Model/Sana_1600M_1024px_diffusers", side=1024, defaults=_DEFAULTS),
        ),
        recipes={"dreambooth": _RECIPE, "style": dataclasses.replace(_RECIPE, steps=1500)},
        dtypes={"vae": "float32"},
        presets=presets(
            "transformer", _SELF + _CROSS, _FEEDFORWARD, {"text_encoder": LANGUAGE},
            tools=_SELF[:3] + _CROSS[:3],
        ),
        kohya="lora_transformer",
        marks=marks,
        single=SingleFile(
            tells=lambda shapes: "blocks.0.mlp.inverted_conv.conv.weight" in shapes,
            configs=lambda shapes: "Efficient-Large-Model/Sana_1600M_1024px_diffusers",
            unread=("pos_embed",),
        ),
        identity=lambda parts: Identity("sana", "sana"),
        called=("sana",),
        recognise=of_class("transformer", "SanaTransformer2DModel"),
        check_text=lambda pipe, prompts: check_tokens(pipe.tokenizer, prompts, LENGTH),
        roles=True,
        encode_text=encode_text,
        encode_image=encode_image,
        decode=decode,
        predict=predict,
        streams=SANA_STREAMS,
        shift=flow_shift(patch=1),
    ),
)  # fmt: skip
