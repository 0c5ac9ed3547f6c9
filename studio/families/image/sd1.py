"""Stable Diffusion 1.x and 2.x: a UNet with cross-attention, one CLIP text encoder, a KL autoencoder.

The two differ in sizes, in the layer type of the transformers' ``proj_in``/``proj_out`` (convolution in 1.x, linear in
2.x) and in how they are recognised; everything that computes is shared.

References:
    Rombach, Blattmann, Lorenz, Esser, Ommer: High-Resolution Image Synthesis with Latent Diffusion Models, 2022,
    arXiv:2112.10752.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from torch import nn

from studio.families.conditioning import Conditioning
from studio.families.family import FAMILIES, Defaults, Encoder, Family, Identity, Model, Shapes, SingleFile
from studio.families.parts.clip import check_clip, read_chunks, row_length
from studio.families.parts.latents import kl_channels, kl_decode, kl_encode, same_channels
from studio.families.parts.marks import unet_marks
from studio.families.parts.names import is_a
from studio.families.parts.native import by_config
from studio.families.parts.sgm import sgm_names
from studio.families.parts.streams import UNET_STREAMS
from studio.families.parts.unet import unet_predict, unet_presets
from studio.families.process import Diffusion
from studio.families.recipe import ImageRecipe
from studio.families.words import Prompts

_DEFAULTS = Defaults(steps=20, guidance=5.0)

__all__ = ["SD1", "SD2"]

# Small base: measured on the embedded base with subjects that it has never seen, on backgrounds that no instance
# picture has; docs/dreambooth.md shows the frontier. 1200 steps without a prior are better at the subject than 600 with
# one in the same time, and lose only a few red backgrounds, of brown subjects at guidance 3.
_SMALL = ImageRecipe(
    rank=16,
    targets="attention+mlp",
    learning_rate=2e-3,
    text_encoder_learning_rate=1e-3,
    steps=1200,
    batch_size=4,
    previews=3,
    beta2=0.99,
    weighting="min-snr-offset",
    class_steps=25,
    class_guidance=5.0,
)
# Full base (Stable Diffusion 1.5 and up): the values in common use for photographs (diffusers' and kohya's examples
# train LoRA at 1e-4, the text encoder at half of that or less); not measured here, where no such base is at hand.
_FULL = ImageRecipe(
    rank=16,
    learning_rate=1e-4,
    text_encoder_learning_rate=5e-5,
    steps=800,
    batch_size=1,
    weighting="min-snr",
    class_steps=25,
    class_guidance=5.0,
)


def encode_text(pipe: Any, prompts: Prompts, negative: bool) -> Conditioning:
    """Returns the last hidden state of the CLIP text encoder, ``(B, L, D)``, L being the tokenizer's length per chunk.

    Args:
        pipe: the pipeline with ``tokenizer`` and ``text_encoder``.
        prompts: B prompts; ``""`` is the unconditional one.
        negative: makes no difference here.

    Raises:
        DoesNotFit: a caption is longer than a chunk.
    """
    tokens, _ = read_chunks(pipe, pipe.tokenizer, pipe.text_encoder, prompts, lambda out: out[0])
    return Conditioning(tokens)


def _is_unet(module: nn.Module | None, linear: bool) -> bool:
    if module is None or not is_a(module, "UNet2DConditionModel"):
        return False
    config: Any = module.config
    return config.addition_embed_type is None and bool(config.use_linear_projection) == linear


def _is_encoder(module: nn.Module, activation: str) -> bool:
    config: Any = getattr(module, "config", None)
    return is_a(module, "CLIPTextModel") and config.hidden_act == activation


def _is_ldm(shapes: Shapes, linear: bool) -> bool:
    """Whether tensors are those of a UNet as CompVis named them, with linear or convolving projections."""
    projection = next((shape for name, shape in shapes.items() if name.endswith(".1.proj_in.weight")), None)
    foreign = any(name.startswith("label_emb.") for name in shapes)  # SDXL's sizes, or the classes of an upscaler
    return "input_blocks.0.0.weight" in shapes and projection is not None and not foreign and (
        (len(projection) == 2) == linear
    )  # fmt: skip


_PARTS: Final = {"text_encoder": ("cond_stage_model.",), "vae": ("first_stage_model.", "vae.")}


def _recognise_sd1(parts: Mapping[str, nn.Module]) -> bool:
    if "" in parts:
        return _is_unet(parts[""], linear=False) or _is_encoder(parts[""], "quick_gelu")
    return "text_encoder_2" not in parts and _is_unet(parts.get("unet"), linear=False)


def _recognise_sd2(parts: Mapping[str, nn.Module]) -> bool:
    if "" in parts:
        return _is_unet(parts[""], linear=True) or _is_encoder(parts[""], "gelu")
    return "text_encoder_2" not in parts and _is_unet(parts.get("unet"), linear=True)


SD1 = FAMILIES.add(
    "sd1",
    Family(
        name="sd1",
        title="Stable Diffusion 1.x",
        pipelines=("StableDiffusionPipeline",),
        denoiser="unet",
        encoders=(Encoder(component="text_encoder", kohya="lora_te", level="text_model.", label="clip_l", width=768),),
        multiple=8,
        process=Diffusion,
        native=by_config("unet"),
        channels=kl_channels,
        draws=lambda pipe: same_channels(pipe, "unet", kl_channels(pipe)),
        defaults=lambda pipe: _DEFAULTS,
        models=(Model(title="1.5", id="stable-diffusion-v1-5/stable-diffusion-v1-5", side=512, defaults=_DEFAULTS),),
        recipes={"dreambooth": _FULL, "style": dataclasses.replace(_FULL, steps=1500)},
        small_recipes={"dreambooth": _SMALL, "style": dataclasses.replace(_SMALL, steps=600)},
        presets=unet_presets(linear_projections=False, encoders=("text_encoder",)),
        kohya="lora_unet",
        names=sgm_names,
        names_in=("native",),
        marks=unet_marks(768, 768),
        single=SingleFile(
            tells=lambda shapes: _is_ldm(shapes, linear=False),
            configs=lambda shapes: "stable-diffusion-v1-5/stable-diffusion-v1-5",
            parts=_PARTS,
            level="model.diffusion_model.",
        ),
        hashes_files=False,
        identity=lambda parts: Identity("stable-diffusion-v1", "sd_v1"),
        called=("stable-diffusion-v1", "stable-diffusion-1", "sd-v1", "sd-1", "sd1"),
        recognise=_recognise_sd1,
        check_text=lambda pipe, prompts: check_clip(pipe.tokenizer, prompts),
        row_length=lambda pipe, prompt, negative: row_length(pipe.tokenizer, prompt),
        emphasis=True,
        chunks=True,
        encode_text=encode_text,
        encode_image=kl_encode,
        decode=kl_decode,
        predict=unet_predict,
        streams=UNET_STREAMS,
    ),
)

SD2 = FAMILIES.add(
    "sd2",
    dataclasses.replace(
        SD1,
        name="sd2",
        title="Stable Diffusion 2.x",
        encoders=(Encoder(component="text_encoder", kohya="lora_te", level="text_model.", label="clip_h", width=1024),),
        models=(Model(title="2.1", id="stabilityai/stable-diffusion-2-1", side=768, defaults=_DEFAULTS),),
        presets=unet_presets(linear_projections=True, encoders=("text_encoder",)),
        marks=unet_marks(1024, 1024),
        single=SingleFile(
            tells=lambda shapes: _is_ldm(shapes, linear=True),
            configs=lambda shapes: "stabilityai/stable-diffusion-2-1",
            parts=_PARTS,
            level="model.diffusion_model.",
        ),
        identity=lambda parts: Identity("stable-diffusion-v2-768-v", "sd_v2"),
        called=("stable-diffusion-v2", "stable-diffusion-2", "sd-v2", "sd-2", "sd2"),
        recognise=_recognise_sd2,
    ),
)
