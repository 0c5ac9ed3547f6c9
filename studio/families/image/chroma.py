"""Chroma: Flux.1's transformer without guidance and pooled vector, its modulation learnt by a small network; T5.

References:
    Lodestone Rock: Chroma, 2025, https://huggingface.co/lodestones/Chroma.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from studio.families.conditioning import Conditioning
from studio.families.family import FAMILIES, Defaults, Encoder, Family, Identity, Model, SingleFile
from studio.families.image.flux1 import (
    ATTENTION,
    DOUBLE_NAMES,
    FEEDFORWARD,
    SINGLE_NAMES,
    TOOLS,
    flux_schedule,
    like_flux2,
    unmodulated,
)
from studio.families.parts.emphasis import token_weights, weighed
from studio.families.parts.latents import grid, kl_channels, kl_decode, kl_encode, pack, same_channels, unpack
from studio.families.parts.names import T5, of_class, presets
from studio.families.parts.native import square
from studio.families.parts.renames import flux_names
from studio.families.parts.schedule import flow_shift
from studio.families.parts.streams import CHROMA_STREAMS
from studio.families.parts.texts import check_tokens
from studio.families.process import Flow
from studio.families.recipe import ImageRecipe
from studio.families.words import Prompts, texts

__all__ = ["CHROMA"]

LENGTH = 512

_DEFAULTS = Defaults(steps=35, guidance=5.0, length=LENGTH)

# as Flux.1; not measured here
_RECIPE = ImageRecipe(rank=16, learning_rate=1e-4, text_encoder_learning_rate=5e-6, steps=1000, batch_size=1)


def encode_text(pipe: Any, prompts: Prompts, negative: bool) -> Conditioning:
    """Returns T5's states and the mask of the prompt and one token of padding.

    Args:
        pipe: the pipeline with tokenizer and text encoder.
        prompts: B prompts; ``""`` is the unconditional one.
        negative: makes no difference here.

    Raises:
        DoesNotFit: a prompt is longer than T5 reads.
    """
    check_tokens(pipe.tokenizer, prompts, LENGTH)
    tokens, _, mask, *_ = pipe.encode_prompt(
        texts(prompts), do_classifier_free_guidance=False, max_sequence_length=LENGTH
    )
    weights = token_weights(pipe.tokenizer, prompts, LENGTH)
    return weighed(Conditioning(tokens, mask=mask.bool()), weights)


def predict(pipe: Any, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    """Returns noise - picture, ``(B, C, h, w)``.

    The mask is given as numbers, which the attention adds to its scores: that is how the base's pictures are drawn.
    """
    height, width = noisy.shape[2:]
    tokens, mask = conditioning.tokens, conditioning.mask
    assert mask is not None, "encode_text gives one"
    both = torch.cat([mask, mask.new_ones(len(noisy), height * width // 4)], 1).to(tokens.dtype)
    out = pipe.transformer(
        hidden_states=pack(noisy), timestep=timesteps / 1000, encoder_hidden_states=tokens, attention_mask=both,
        txt_ids=torch.zeros(tokens.shape[1], 3, device=noisy.device),
        img_ids=grid(height // 2, width // 2, 3, noisy.new_zeros((), dtype=torch.float32)),
    ).sample  # fmt: skip
    return unpack(out, height, width)


def checkpointed() -> Callable[..., Any]:
    """Returns what runs a block: diffusers gives the mask to the first ones and forgets it for the single ones."""
    mask: Tensor | None = None

    def run(block: nn.Module, *given: Any) -> Any:
        nonlocal mask
        if "Single" in type(block).__name__:
            given = (*given, mask)
        else:
            mask = given[-1]
        return checkpoint(block.__call__, *given, use_reentrant=False)

    return run


_GUIDANCE = {
    "distilled_guidance_layer.in_proj": ("distilled_guidance_layer.in_proj",),
    "distilled_guidance_layer.out_proj": ("distilled_guidance_layer.out_proj",),
    "distilled_guidance_layer.layers.{}.in_layer": ("distilled_guidance_layer.layers.{}.linear_1",),
    "distilled_guidance_layer.layers.{}.out_layer": ("distilled_guidance_layer.layers.{}.linear_2",),
}


CHROMA = FAMILIES.add(
    "chroma",
    Family(
        name="chroma",
        title="Chroma",
        pipelines=("ChromaPipeline",),
        denoiser="transformer",
        encoders=(Encoder(component="text_encoder", kohya="lora_te3", trained=False, label="t5xxl", width=4096),),
        multiple=16,
        process=Flow,
        native=square(1024),
        channels=kl_channels,
        draws=lambda pipe: same_channels(pipe, "transformer", 4 * kl_channels(pipe)),
        defaults=lambda pipe: _DEFAULTS,
        models=(Model(title="1 HD", id="lodestones/Chroma1-HD", side=1024, defaults=_DEFAULTS),),
        recipes={"dreambooth": _RECIPE, "style": dataclasses.replace(_RECIPE, steps=1500)},
        presets=presets("transformer", ATTENTION, FEEDFORWARD, {"text_encoder": T5}, tools=TOOLS),
        kohya="lora_unet",
        names=flux_names(DOUBLE_NAMES, SINGLE_NAMES, _GUIDANCE),
        marks=lambda clues: unmodulated(clues) and not like_flux2(clues),
        single=SingleFile(
            tells=lambda shapes: "distilled_guidance_layer.in_proj.bias" in shapes,
            configs=lambda shapes: "lodestones/Chroma1-HD",
            parts={"text_encoder": ("text_encoders.t5xxl.",), "vae": ("first_stage_model.", "vae.")},
        ),
        identity=lambda parts: Identity("chroma", "chroma"),
        called=("chroma",),
        alike=("flux1",),
        recognise=of_class("transformer", "ChromaTransformer2DModel"),
        check_text=lambda pipe, prompts: check_tokens(pipe.tokenizer, prompts, LENGTH),
        emphasis=True,
        encode_text=encode_text,
        encode_image=kl_encode,
        decode=kl_decode,
        predict=predict,
        streams=CHROMA_STREAMS,
        schedule=flux_schedule,
        checkpointed=checkpointed,
        shift=flow_shift(patch=2),
    ),
)
