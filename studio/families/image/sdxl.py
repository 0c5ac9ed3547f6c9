"""Stable Diffusion XL: a UNet that embeds the picture's size, and two CLIP text encoders.

References:
    Podell et al.: SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis, 2023, arXiv:2307.01952.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from studio.families.conditioning import Conditioning, Shot
from studio.families.family import FAMILIES, Defaults, Encoder, Family, Identity, Model, SingleFile
from studio.families.parts.clip import check_clip, read_chunks
from studio.families.parts.clip import row_length as clip_length
from studio.families.parts.latents import kl_channels, kl_decode, kl_encode, same_channels
from studio.families.parts.marks import xl_marks
from studio.families.parts.names import is_a
from studio.families.parts.native import by_config
from studio.families.parts.sgm import sgm_names
from studio.families.parts.silent import last_layer_unread
from studio.families.parts.streams import UNET_STREAMS
from studio.families.parts.unet import unet_presets
from studio.families.process import Diffusion
from studio.families.recipe import ImageRecipe
from studio.families.words import Prompts, Words, texts

__all__ = ["SDXL"]

_DEFAULTS = Defaults(steps=30, guidance=5.0)

# diffusers' scripts train LoRA at 1e-4 and the text encoders at 5e-6; not measured here.
_RECIPE = ImageRecipe(
    rank=16, learning_rate=1e-4, text_encoder_learning_rate=5e-6, steps=1000, batch_size=1, weighting="min-snr"
)


def check_text(pipe: Any, prompts: Prompts) -> None:
    """Checks that both text encoders read captions whole.

    Raises:
        DoesNotFit: one does not; what would have been cut off is named.
    """
    for tokenizer, _ in _readers(pipe):
        check_clip(tokenizer, prompts)


def row_length(pipe: Any, prompt: str | Words, negative: bool) -> int:
    """Returns the tokens of all chunks of a prompt, by the encoder that needs more of them."""
    return max(clip_length(tokenizer, prompt) for tokenizer, _ in _readers(pipe))


def _readers(pipe: Any) -> list[tuple[Any, Any]]:
    """Tokenizers and text encoders; a refiner has the second alone."""
    both = (pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)
    return [(tokenizer, encoder) for tokenizer, encoder in both if encoder is not None]


def encode_text(pipe: Any, prompts: Prompts, negative: bool) -> Conditioning:
    """Returns the last but one hidden states of both encoders side by side, and the second one's pooled vector.

    Guidance away from nothing leads away from zeros, where the base was trained so.

    Args:
        pipe: the pipeline with tokenizers and text encoders.
        prompts: B prompts.
        negative: whether guidance leads away from them.

    Raises:
        DoesNotFit: a caption is longer than a chunk.
    """
    states, pooled = list[Tensor](), torch.empty(0)
    for tokenizer, encoder in _readers(pipe):
        state, first = read_chunks(
            pipe, tokenizer, encoder, prompts, lambda out: out.hidden_states[-2], output_hidden_states=True
        )
        states.append(state)
        pooled = first[0]  # the last encoder's
    tokens = torch.cat(states, -1)
    if negative and pipe.config.force_zeros_for_empty_prompt and not all(texts(prompts)):
        said = torch.tensor([bool(text) for text in texts(prompts)], device=tokens.device)
        tokens, pooled = tokens * said[:, None, None], pooled * said[:, None]
    return Conditioning(tokens, pooled)


def condition(pipe: Any, conditioning: Conditioning, shots: Sequence[Shot]) -> Conditioning:
    """Adds each picture's size ids ``(B, 6)``: sides of its file, corner of its crop, its own sides."""
    ids = [[*(shot.original or shot.size), *shot.crop, *shot.size] for shot in shots]
    tokens = conditioning.tokens
    return replace(conditioning, extra={"time_ids": torch.tensor(ids, dtype=tokens.dtype, device=tokens.device)})


def predict(pipe: Any, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    """Returns the UNet's output ``(B, C, h, w)``: ε or v, as the scheduler's ``prediction_type`` says."""
    added = {"text_embeds": conditioning.pooled, "time_ids": conditioning.extra["time_ids"]}
    return pipe.unet(noisy, timesteps, encoder_hidden_states=conditioning.tokens, added_cond_kwargs=added).sample


def encode_image(pipe: Any, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """As for the older ones, or with the statistics of the VAE's config, where it has some."""
    latents = kl_encode(pipe, pixels, generator)
    scale, stated = pipe.vae.config.scaling_factor, _statistics(pipe, latents)
    return latents if stated is None else (latents / scale - stated[0]) * (scale / stated[1])


def decode(pipe: Any, latents: Tensor) -> Tensor:
    """The inverse of :func:`encode_image`, clipped to [-1, 1]."""
    scale, stated = pipe.vae.config.scaling_factor, _statistics(pipe, latents)
    return kl_decode(pipe, latents if stated is None else (latents * stated[1] / scale + stated[0]) * scale)


def _statistics(pipe: Any, like: Tensor) -> tuple[Tensor, Tensor] | None:
    """Mean and deviation of each channel, which some bases state in place of one scale."""
    mean, std = (getattr(pipe.vae.config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is None or std is None:
        return None
    return like.new_tensor(mean).view(1, -1, 1, 1), like.new_tensor(std).view(1, -1, 1, 1)


def _recognise(parts: Mapping[str, nn.Module]) -> bool:
    unet = parts.get("unet", parts.get(""))
    if unet is None or not is_a(unet, "UNet2DConditionModel"):
        return False
    config: Any = unet.config
    return bool(config.addition_embed_type == "text_time")


SDXL = FAMILIES.add(
    "sdxl",
    Family(
        name="sdxl",
        title="Stable Diffusion XL",
        pipelines=("StableDiffusionXLPipeline",),
        denoiser="unet",
        encoders=(
            Encoder(component="text_encoder", kohya="lora_te1", level="text_model.", label="clip_l", width=768),
            Encoder(component="text_encoder_2", kohya="lora_te2", level="text_model.", label="clip_g", width=1280),
        ),
        multiple=8,
        process=Diffusion,
        native=by_config("unet"),
        channels=kl_channels,
        draws=lambda pipe: same_channels(pipe, "unet", kl_channels(pipe)),
        defaults=lambda pipe: _DEFAULTS,
        models=(Model(title="base 1.0", id="stabilityai/stable-diffusion-xl-base-1.0", side=1024, defaults=_DEFAULTS),),
        recipes={"dreambooth": _RECIPE, "style": dataclasses.replace(_RECIPE, steps=1500)},
        dtypes={"vae": "float32"},
        presets=unet_presets(linear_projections=True, sizes=True, encoders=("text_encoder", "text_encoder_2")),
        kohya="lora_unet",
        names=sgm_names,
        marks=xl_marks,
        single=SingleFile(
            tells=lambda shapes: "label_emb.0.0.weight" in shapes and "input_blocks.0.0.weight" in shapes,
            configs=lambda shapes: "stabilityai/stable-diffusion-xl-base-1.0",
            parts={
                "text_encoder": ("conditioner.embedders.0.transformer.",),
                "text_encoder_2": ("conditioner.embedders.1.",),
                "vae": ("first_stage_model.", "vae."),
            },
            level="model.diffusion_model.",
        ),
        identity=lambda parts: Identity("stable-diffusion-xl-v1-base", "sdxl_base_v1-0"),
        called=("stable-diffusion-xl", "sdxl"),
        silent=last_layer_unread(
            "text_encoder", "encoder.layers", "its last layer is not read: SDXL takes the state before it"
        ),
        recognise=_recognise,
        check_text=check_text,
        row_length=row_length,
        roles=True,
        emphasis=True,
        chunks=True,
        encode_text=encode_text,
        condition=condition,
        encode_image=encode_image,
        decode=decode,
        predict=predict,
        streams=UNET_STREAMS,
    ),
)
