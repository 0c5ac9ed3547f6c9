"""Stable Diffusion 1.x and 2.x: a UNet with cross-attention, one CLIP text encoder, a KL autoencoder.

The two differ in sizes, in the layer type of the transformers' ``proj_in``/``proj_out`` (convolution in 1.x, linear in
2.x) and in how they are recognised; everything that computes is shared.

References:
    Rombach, Blattmann, Lorenz, Esser, Ommer: High-Resolution Image Synthesis with Latent Diffusion Models, 2022,
    arXiv:2112.10752.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from studio.errors import DoesNotFit
from studio.families.family import FAMILIES, Conditioning, Family, Presets

__all__ = ["SD1", "SD2"]

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEEDFORWARD = ("ff.net.0.proj", "ff.net.2")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "downsamplers.*.conv", "upsamplers.*.conv")
TIME = ("time_emb_proj", "time_embedding.linear_1", "time_embedding.linear_2")
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
TEXT_FEEDFORWARD = ("fc1", "fc2")


def _presets(projections_are_linear: bool) -> Presets:
    projections = ("proj_in", "proj_out")
    linear = ATTENTION + FEEDFORWARD + TIME + (projections if projections_are_linear else ())
    convolutions = CONVOLUTIONS + (() if projections_are_linear else projections)
    text = TEXT_ATTENTION + TEXT_FEEDFORWARD
    return {
        "attention": {"unet": ATTENTION, "text_encoder": TEXT_ATTENTION},
        "attention+mlp": {"unet": ATTENTION + FEEDFORWARD, "text_encoder": text},
        "all-linear": {"unet": linear, "text_encoder": text},
        "conv": {"unet": convolutions},
        # What the two trainers take unless told otherwise.
        "subject": {"unet": ATTENTION + FEEDFORWARD},
        "style": {"unet": ATTENTION + FEEDFORWARD},
    }


def check_text(pipe: Any, prompts: Sequence[str]) -> None:
    """Checks that the CLIP text encoder reads prompts whole; nothing is encoded.

    Args:
        pipe: the pipeline with ``tokenizer``.
        prompts: the prompts.

    Raises:
        DoesNotFit: a prompt is longer than the encoder reads; what would have been cut off is named.
    """
    tokenizer = pipe.tokenizer
    length = tokenizer.model_max_length
    for prompt in prompts:
        ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
        if len(ids) > length:
            rest = tokenizer.decode(ids[length - 1 : -1]).strip()
            raise DoesNotFit(
                f"the prompt {prompt!r} has {len(ids)} tokens and this base reads {length}; shorten it "
                f"(the part {rest!r} would be lost)"
            )


def encode_text(pipe: Any, prompts: Sequence[str]) -> Conditioning:
    """Returns the last hidden state of the CLIP text encoder, ``(B, L, D)``, L being the tokenizer's length.

    Args:
        pipe: the pipeline with ``tokenizer`` and ``text_encoder``.
        prompts: B prompts; ``""`` is the unconditional one.

    Raises:
        DoesNotFit: as :func:`check_text`.
    """
    check_text(pipe, prompts)
    tokenizer, encoder = pipe.tokenizer, pipe.text_encoder
    length = tokenizer.model_max_length
    ids = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return Conditioning(encoder(ids.input_ids.to(_device(pipe, encoder)))[0])


def encode_image(pipe: Any, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Returns scaled latents ``z = (e - shift) * scale`` of ``pixels`` ``(B, 3, H, W)`` in [-1, 1].

    ``e`` is the posterior's mode, or with a ``generator`` a sample of it.
    """
    vae = pipe.vae
    posterior = vae.encode(pixels.to(_device(pipe, vae), vae.dtype)).latent_dist
    latents = posterior.mode() if generator is None else posterior.sample(generator)
    return (latents - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


def decode(pipe: Any, latents: Tensor) -> Tensor:
    """Returns pixels ``(B, 3, H, W)``, clipped to [-1, 1], of scaled latents ``(B, C, h, w)``."""
    vae = pipe.vae
    unscaled = latents.to(_device(pipe, vae), vae.dtype) / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
    return vae.decode(unscaled).sample.clamp(-1, 1)


def predict(pipe: Any, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    """Returns the UNet's output ``(B, C, h, w)``: ε or v, as the scheduler's ``prediction_type`` says."""
    return pipe.unet(noisy, timesteps, encoder_hidden_states=conditioning.tokens).sample


def _device(pipe: Any, module: Any) -> torch.device:
    """Where a module computes: an offloaded one rests elsewhere, or nowhere (meta)."""
    return pipe._execution_device if "_hf_hook" in vars(module) else module.device


def _is_unet(module: nn.Module | None, linear: bool) -> bool:
    if module is None or "UNet2DConditionModel" not in {cls.__name__ for cls in type(module).__mro__}:
        return False
    config: Any = module.config
    return config.addition_embed_type is None and bool(config.use_linear_projection) == linear


def _is_encoder(module: nn.Module | None, activations: tuple[str, ...]) -> bool:
    if module is None or "CLIPTextModel" not in {cls.__name__ for cls in type(module).__mro__}:
        return False
    config: Any = module.config
    return config.hidden_act in activations


def _recognise_sd1(parts: Mapping[str, nn.Module]) -> bool:
    if "" in parts:
        return _is_unet(parts[""], linear=False) or _is_encoder(parts[""], ("quick_gelu",))
    return "text_encoder_2" not in parts and _is_unet(parts.get("unet"), linear=False)


def _recognise_sd2(parts: Mapping[str, nn.Module]) -> bool:
    if "" in parts:
        return _is_unet(parts[""], linear=True) or _is_encoder(parts[""], ("gelu",))
    return "text_encoder_2" not in parts and _is_unet(parts.get("unet"), linear=True)


SD1 = FAMILIES.add(
    "sd1",
    Family(
        name="sd1",
        title="Stable Diffusion 1.x",
        pipeline="StableDiffusionPipeline",
        denoiser="unet",
        encoders=("text_encoder",),
        downscale=8,
        multiple=8,
        native=512,
        presets=_presets(projections_are_linear=False),
        kohya={"unet": "lora_unet", "text_encoder": "lora_te"},
        file_prefix={"text_encoder": "text_model."},
        modelspec="stable-diffusion-v1",
        recognise=_recognise_sd1,
        check_text=check_text,
        encode_text=encode_text,
        encode_image=encode_image,
        decode=decode,
        predict=predict,
    ),
)

SD2 = FAMILIES.add(
    "sd2",
    dataclasses.replace(
        SD1,
        name="sd2",
        title="Stable Diffusion 2.x",
        native=768,
        presets=_presets(projections_are_linear=True),
        modelspec="stable-diffusion-v2-768-v",
        recognise=_recognise_sd2,
    ),
)
