"""Qwen-Image: a transformer over picture and text, and a vision-language model that reads the prompt.

References:
    Wu et al.: Qwen-Image Technical Report, 2025, arXiv:2508.02324.
"""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from studio.families.conditioning import Conditioning
from studio.families.family import FAMILIES, Defaults, Encoder, Family, Identity, Model, Silent, SingleFile
from studio.families.image.flux1 import flux_schedule
from studio.families.native import Clues
from studio.families.parts.contexts import places, replaced
from studio.families.parts.guide import patch_norm, renormed
from studio.families.parts.latents import pack, same_channels, unpack
from studio.families.parts.marks import in_streams
from studio.families.parts.names import LANGUAGE, of_class, presets
from studio.families.parts.native import square
from studio.families.parts.place import device_of
from studio.families.parts.schedule import flow_shift
from studio.families.parts.streams import QWEN_STREAMS
from studio.families.parts.texts import check_tokens
from studio.families.process import Flow
from studio.families.recipe import ImageRecipe
from studio.families.words import Prompts, Words, texts

__all__ = ["QWEN_IMAGE"]

LENGTH = 512

_DEFAULTS = Defaults(steps=50, guidance=4.0, length=LENGTH)

# diffusers' script: uniform times, no weighting, 1e-4; not measured here
_RECIPE = ImageRecipe(rank=16, learning_rate=1e-4, text_encoder_learning_rate=5e-6, steps=1000, batch_size=1)

_IMAGE = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
_ATTENTION = (*_IMAGE, "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out")
_FEEDFORWARD = ("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2")


def check_text(pipe: Any, prompts: Prompts) -> None:
    """Checks that the denoiser reads prompts whole.

    Raises:
        DoesNotFit: it does not; what would have been cut off is named.
    """
    check_tokens(pipe.tokenizer, prompts, LENGTH - 5)  # the turn's end stands behind a prompt


def row_length(pipe: Any, prompt: str | Words, negative: bool) -> int:
    """Returns the tokens of a prompt, which no padding fills up to a common number."""
    return len(pipe.tokenizer(str(prompt) or " ").input_ids)


def encode_text(pipe: Any, prompts: Prompts, negative: bool) -> Conditioning:
    """Returns the language model's last states of the prompt in its template; nothing is a blank, as is usual.

    Args:
        pipe: the pipeline with tokenizer and text encoder.
        prompts: B prompts.
        negative: makes no difference here.

    Raises:
        DoesNotFit: a prompt is longer than the denoiser reads.
    """
    check_text(pipe, prompts)
    tokens, mask = pipe.encode_prompt([prompt or " " for prompt in texts(prompts)], max_sequence_length=LENGTH)
    return Conditioning(tokens, mask=None if mask is None else mask.bool())


def predict(pipe: Any, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    """Returns noise - picture, ``(B, C, h, w)``."""
    height, width = noisy.shape[2:]
    with _each_alone(pipe.transformer, conditioning):
        out = pipe.transformer(
            hidden_states=pack(noisy), timestep=timesteps / 1000, encoder_hidden_states=conditioning.tokens,
            encoder_hidden_states_mask=conditioning.mask, img_shapes=[[(1, height // 2, width // 2)]] * len(noisy),
        ).sample  # fmt: skip
    return unpack(out, height, width)


def _each_alone(transformer: Any, conditioning: Conditioning) -> AbstractContextManager[None]:
    """Contexts that stand behind each other have the places that each would have alone."""
    if conditioning.parts == 1:
        return nullcontext()

    def placed(own: Any, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        picture, words = own(*args, **kwargs)
        return picture, words[places(len(words), conditioning.parts, words.device)]

    return replaced(transformer.pos_embed, "forward", placed)


def channels(pipe: Any) -> int:
    """Returns the channels of the VAE's latents."""
    return int(pipe.vae.config.z_dim)


def encode_image(pipe: Any, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Returns the latents of a video of one frame, normed channel by channel."""
    vae = pipe.vae
    posterior = vae.encode(pixels.to(device_of(pipe, vae), vae.dtype)[:, :, None]).latent_dist
    latents = posterior.mode() if generator is None else posterior.sample(generator)
    mean, std = _statistics(pipe, latents)
    return (latents[:, :, 0] - mean) / std


def decode(pipe: Any, latents: Tensor) -> Tensor:
    """The inverse of :func:`encode_image`, clipped to [-1, 1]."""
    vae = pipe.vae
    latents = latents.to(device_of(pipe, vae), vae.dtype)
    mean, std = _statistics(pipe, latents)
    return vae.decode((latents * std + mean)[:, :, None]).sample[:, :, 0].clamp(-1, 1)


def _statistics(pipe: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    config = pipe.vae.config
    mean, std = (
        torch.tensor(x, dtype=like.dtype, device=like.device) for x in (config.latents_mean, config.latents_std)
    )
    return mean.view(1, -1, 1, 1), std.view(1, -1, 1, 1)


def _silent(component: str, module: nn.Module) -> tuple[Silent, ...]:
    config: Any = module.config
    if component == "text_encoder":
        return (
            Silent(("model.visual.*",), "it reads pictures, and there is none"),
            Silent(("lm_head",), "what it says is not read"),
        )
    last = f"transformer_blocks.{config.num_layers - 1}"
    names = ("attn.to_add_out", "attn.add_q_proj", "txt_mlp.net.0.proj", "txt_mlp.net.2")
    return (Silent(tuple(f"{last}.{name}" for name in names), "nothing asks for the text behind the last block"),)


def marks(clues: Clues) -> bool:
    """Tells files of Qwen-Image by its streams' names, or by their width."""
    return clues.has(r"transformer_blocks_\d+_(img|txt)_(mlp|mod)_") or in_streams(clues, 3072)


QWEN_IMAGE = FAMILIES.add(
    "qwen-image",
    Family(
        name="qwen-image",
        title="Qwen-Image",
        pipelines=("QwenImagePipeline",),
        denoiser="transformer",
        encoders=(Encoder(component="text_encoder", root="model.language_model", trained=False),),
        multiple=16,
        process=Flow,
        native=square(1024),
        channels=channels,
        draws=lambda pipe: same_channels(pipe, "transformer", 4 * channels(pipe)),
        defaults=lambda pipe: _DEFAULTS,
        models=(Model(title="Qwen-Image", id="Qwen/Qwen-Image", side=1024, defaults=_DEFAULTS),),
        recipes={"dreambooth": _RECIPE, "style": dataclasses.replace(_RECIPE, steps=1500)},
        presets=presets("transformer", _ATTENTION, _FEEDFORWARD, {"text_encoder": LANGUAGE}, tools=_IMAGE),
        kohya="lora_unet",
        marks=marks,
        single=SingleFile(
            tells=lambda shapes: {"transformer_blocks.0.img_mod.1.weight", "txt_norm.weight"} <= shapes.keys(),
            configs=lambda shapes: "Qwen/Qwen-Image",
        ),
        identity=lambda parts: Identity("Qwen-Image", "qwen_image"),
        called=("qwen-image",),
        silent=_silent,
        recognise=of_class("transformer", "QwenImageTransformer2DModel"),
        check_text=check_text,
        row_length=row_length,
        encode_text=encode_text,
        encode_image=encode_image,
        decode=decode,
        predict=predict,
        streams=QWEN_STREAMS,
        guide=renormed(patch_norm),
        schedule=flux_schedule,
        shift=flow_shift(patch=2),
    ),
)
