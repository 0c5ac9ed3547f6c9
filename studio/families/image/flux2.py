"""Flux.2 dev and klein: a transformer with one modulation for all blocks, and a language model that reads the prompt.

dev was distilled to take guidance as a number; klein comes as a base, guided in two passes, and
distilled to four steps.

References:
    Black Forest Labs: FLUX.2, 2025, https://github.com/black-forest-labs/flux2.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studio.families.conditioning import Conditioning
from studio.families.family import FAMILIES, Defaults, Encoder, Family, Identity, Model, Shapes, Silent, SingleFile
from studio.families.image.flux1 import embed_guidance, like_flux2
from studio.families.parts.contexts import places
from studio.families.parts.latents import grid, kl_channels, same_channels
from studio.families.parts.names import LANGUAGE, is_a, of_class, presets
from studio.families.parts.native import by_vae, square
from studio.families.parts.place import device_of
from studio.families.parts.renames import flux_names
from studio.families.parts.schedule import evenly, linear_mu
from studio.families.parts.streams import FLUX2_STREAMS
from studio.families.parts.texts import check_chat
from studio.families.process import Flow
from studio.families.recipe import ImageRecipe
from studio.families.words import Prompts, texts

__all__ = ["FLUX2", "empirical_mu"]

LENGTH = 512

# diffusers' scripts: uniform times, no weighting, 1e-4; not measured here
_RECIPE = ImageRecipe(rank=16, learning_rate=1e-4, text_encoder_learning_rate=5e-6, steps=1000, batch_size=1)

_ATTENTION = (
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj",
    "attn.to_add_out", "attn.to_qkv_mlp_proj", "single_transformer_blocks.*.attn.to_out",
)  # fmt: skip
_FEEDFORWARD = ("ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out")
_TOOLS = (
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.to_qkv_mlp_proj",
    "single_transformer_blocks.*.attn.to_out",
)  # fmt: skip


def empirical_mu(tokens: int, steps: int) -> float:
    """Returns the shift's μ by which Flux.2 draws; it depends on the number of steps too.

    Args:
        tokens: N, the number of image tokens.
        steps: n.

    Example:
        >>> round(empirical_mu(4096, 50), 3)
        2.023
    """
    late = 0.00016927 * tokens + 0.45666666
    if tokens > 4300:
        return late
    early = 8.73809524e-05 * tokens + 1.89833333
    slope = (late - early) / 190
    return slope * steps + late - 200 * slope


def check_text(pipe: Any, prompts: Prompts) -> None:
    """Checks that the language model reads prompts whole.

    Raises:
        DoesNotFit: it does not.
    """
    # the system message of dev is part of what is read
    written = [pipe.tokenizer.apply_chat_template(_messages(pipe, text), **_template(pipe)) for text in texts(prompts)]
    check_chat(pipe.tokenizer, prompts, written, LENGTH)


def _messages(pipe: Any, prompt: str) -> list[dict[str, Any]]:
    system = getattr(pipe, "system_message", None)
    if system is None:
        return [{"role": "user", "content": prompt}]
    parts = {"system": system, "user": prompt}
    return [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in parts.items()]


def _template(pipe: Any) -> dict[str, Any]:
    if getattr(pipe, "system_message", None) is None:
        return {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
    return {"tokenize": False, "add_generation_prompt": False}


def encode_text(pipe: Any, prompts: Prompts, negative: bool) -> Conditioning:
    """Returns the states of three layers of the language model side by side.

    Args:
        pipe: the pipeline with tokenizer and text encoder.
        prompts: B prompts; ``""`` is the unconditional one.
        negative: makes no difference here.

    Raises:
        DoesNotFit: a prompt is longer than the language model reads.
    """
    check_text(pipe, prompts)
    return Conditioning(pipe.encode_prompt(texts(prompts), max_sequence_length=LENGTH)[0])


def predict(pipe: Any, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    """Returns noise - picture, ``(B, C, h, w)``."""
    tokens, (height, width) = conditioning.tokens, noisy.shape[2:]
    words = torch.zeros(tokens.shape[1], 4, device=noisy.device)
    words[:, 3] = places(len(words), conditioning.parts, noisy.device)
    out = pipe.transformer(
        hidden_states=noisy.flatten(2).transpose(1, 2), timestep=timesteps / 1000, encoder_hidden_states=tokens,
        guidance=conditioning.extra.get("guidance"), txt_ids=words,
        img_ids=grid(height, width, 4, noisy.new_zeros((), dtype=torch.float32)),
    ).sample  # fmt: skip
    return out.transpose(1, 2).unflatten(2, (height, width))


def channels(pipe: Any) -> int:
    """Returns the channels of 2 x 2 cells of the VAE's."""
    return 4 * kl_channels(pipe)


def encode_image(pipe: Any, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Returns 2 x 2 cells of the VAE's latents as channels, normed by its statistics."""
    vae = pipe.vae
    posterior = vae.encode(pixels.to(device_of(pipe, vae), vae.dtype)).latent_dist
    latents = posterior.mode() if generator is None else posterior.sample(generator)
    mean, std = _statistics(pipe)
    return (F.pixel_unshuffle(latents, 2) - mean) / std


def decode(pipe: Any, latents: Tensor) -> Tensor:
    """The inverse of :func:`encode_image`, clipped to [-1, 1]."""
    vae = pipe.vae
    mean, std = _statistics(pipe)
    cells = latents.to(device_of(pipe, vae), vae.dtype) * std + mean
    return vae.decode(F.pixel_shuffle(cells, 2)).sample.clamp(-1, 1)


def _statistics(pipe: Any) -> tuple[Tensor, Tensor]:
    norm = pipe.vae.bn
    mean, variance = norm.running_mean.view(1, -1, 1, 1), norm.running_var.view(1, -1, 1, 1)
    return mean, (variance + pipe.vae.config.batch_norm_eps).sqrt()


_DEV = Defaults(steps=50, embedded=4.0, trained=1.0, negative=False, length=LENGTH)
_KLEIN = Defaults(steps=50, guidance=4.0, length=LENGTH)
_DISTILLED = Defaults(steps=4, negative=False, length=LENGTH)


def _defaults(pipe: Any) -> Defaults:
    if pipe.transformer.config.guidance_embeds:
        return _DEV
    if pipe.config.get("is_distilled"):
        return _DISTILLED
    return _KLEIN


def _configs(shapes: Shapes) -> str:
    """dev embeds its guidance, and klein's two sizes differ in their width."""
    if "guidance_in.in_layer.weight" in shapes:
        return "black-forest-labs/FLUX.2-dev"
    return f"black-forest-labs/FLUX.2-klein-{4 if shapes['img_in.weight'][0] <= 3072 else 9}B"


def _identity(parts: Mapping[str, nn.Module]) -> Identity:
    config: Any = (parts.get("transformer") or parts[""]).config
    if config.guidance_embeds:
        return Identity("Flux.2-dev", "flux_2_dev")
    size = "4b" if config.num_single_layers <= 20 else "9b"
    return Identity(f"Flux.2-klein-{size}", f"flux_2_klein_{size}")


def _silent(component: str, module: nn.Module) -> tuple[Silent, ...]:
    if component != "text_encoder":
        return ()
    sees = is_a(module, "Mistral3ForConditionalGeneration")
    config: Any = module.config.text_config if sees else module.config  # type: ignore[union-attr]
    first, root = (30, "model.language_model.layers") if sees else (27, "model.layers")
    later = tuple(f"{root}.{number}.*" for number in range(first, config.num_hidden_layers))
    silent = (Silent((*later, "lm_head"), f"the prompt's states are those of the layers below {first}"),)
    blind = ("model.vision_tower.*", "model.multi_modal_projector.*")
    return (*silent, Silent(blind, "it reads pictures, and there is none")) if sees else silent


_DOUBLE_NAMES = {
    "img_mlp.0": ("ff.linear_in",),
    "img_mlp.2": ("ff.linear_out",),
    "txt_mlp.0": ("ff_context.linear_in",),
    "txt_mlp.2": ("ff_context.linear_out",),
}
_SINGLE_NAMES = {"linear1": ("attn.to_qkv_mlp_proj",), "linear2": ("attn.to_out",)}
_STREAMS = ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation")
_ENDS = {f"{name}.lin": (f"{name}.linear",) for name in _STREAMS} | {
    f"{native}_in.{side}_layer": (f"time_guidance_embed.{ours}_embedder.linear_{number}",)
    for native, ours in (("time", "timestep"), ("guidance", "guidance"))
    for number, side in ((1, "in"), (2, "out"))
}


FLUX2 = FAMILIES.add(
    "flux2",
    Family(
        name="flux2",
        title="Flux.2",
        pipelines=("Flux2Pipeline", "Flux2KleinPipeline"),
        denoiser="transformer",
        encoders=(Encoder(component="text_encoder", trained=False),),
        downscale=by_vae(patch=2),
        multiple=16,
        process=Flow,
        native=square(1024),
        channels=channels,
        draws=lambda pipe: same_channels(pipe, "transformer", channels(pipe)),
        defaults=_defaults,
        models=(
            Model(title="dev", id="black-forest-labs/FLUX.2-dev", side=1024, defaults=_DEV),
            Model(title="klein base", id="black-forest-labs/FLUX.2-klein-base-4B", side=1024, defaults=_KLEIN),
            Model(title="klein", id="black-forest-labs/FLUX.2-klein-4B", side=1024, defaults=_DISTILLED),
        ),
        recipes={"dreambooth": _RECIPE, "style": dataclasses.replace(_RECIPE, steps=1500)},
        presets=presets("transformer", _ATTENTION, _FEEDFORWARD, {"text_encoder": LANGUAGE}, tools=_TOOLS),
        kohya="lora_unet",
        names=flux_names(_DOUBLE_NAMES, _SINGLE_NAMES, _ENDS),
        marks=like_flux2,
        single=SingleFile(
            tells=lambda shapes: "single_stream_modulation.lin.weight" in shapes,
            configs=_configs,
        ),
        identity=_identity,
        called=("flux2", "flux-2"),
        silent=_silent,
        recognise=of_class("transformer", "Flux2Transformer2DModel"),
        check_text=check_text,
        encode_text=encode_text,
        condition=embed_guidance,
        encode_image=encode_image,
        decode=decode,
        predict=predict,
        streams=FLUX2_STREAMS,
        schedule=evenly(lambda config, cells, steps: empirical_mu(cells[0] * cells[1], steps)),
        # trained with Flux.1's shift, although it draws with a larger one
        shift=lambda pipe, cells: math.exp(linear_mu({}, cells[0] * cells[1])),
    ),
)
