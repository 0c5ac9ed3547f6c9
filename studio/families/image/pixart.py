"""PixArt-Σ: a transformer with cross-attention to T5, on the latents of SDXL's autoencoder.

References:
    Chen et al.: PixArt-Σ: Weak-to-Strong Training of Diffusion Transformer for 4K Text-to-Image Generation, 2024,
    arXiv:2403.04692.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from studio.families.conditioning import Conditioning
from studio.families.family import FAMILIES, Defaults, Encoder, Family, Identity, Model
from studio.families.native import Clues
from studio.families.parts.emphasis import token_weights, weighed
from studio.families.parts.latents import kl_channels, kl_decode, kl_encode, same_channels
from studio.families.parts.marks import UNET
from studio.families.parts.names import T5, of_class, presets
from studio.families.parts.native import by_config
from studio.families.parts.streams import PIXART_STREAMS
from studio.families.parts.texts import check_tokens
from studio.families.process import Diffusion
from studio.families.recipe import ImageRecipe
from studio.families.words import Prompts, texts

__all__ = ["PIXART"]

LENGTH = 300

_DEFAULTS = Defaults(steps=20, guidance=4.5, length=LENGTH)

# no tool has a script for it; SDXL's values, not measured here
_RECIPE = ImageRecipe(
    rank=16, learning_rate=1e-4, text_encoder_learning_rate=5e-6, steps=1000, batch_size=1, weighting="min-snr"
)

_ATTENTION = (
    "attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_k", "attn2.to_v",
    "attn2.to_out.0",
)  # fmt: skip
_FEEDFORWARD = ("ff.net.0.proj", "ff.net.2")


def encode_text(pipe: Any, prompts: Prompts, negative: bool) -> Conditioning:
    """Returns T5's states of a prompt in lower case, and its mask.

    Args:
        pipe: the pipeline with tokenizer and text encoder.
        prompts: B prompts; ``""`` is the unconditional one.
        negative: makes no difference here.

    Raises:
        DoesNotFit: a prompt is longer than T5 reads.
    """
    check_tokens(pipe.tokenizer, prompts, LENGTH)
    tokens, mask, *_ = pipe.encode_prompt(texts(prompts), False, max_sequence_length=LENGTH)
    weights = token_weights(pipe.tokenizer, prompts, LENGTH, lower=True)
    return weighed(Conditioning(tokens, mask=mask.bool()), weights)


def predict(pipe: Any, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    """Returns ε, ``(B, C, h, w)``; the variance that the transformer predicts beside it is not used."""
    out = pipe.transformer(
        noisy, encoder_hidden_states=conditioning.tokens, encoder_attention_mask=conditioning.mask, timestep=timesteps,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
    ).sample  # fmt: skip
    return out[:, : noisy.shape[1]]


def marks(clues: Clues) -> bool:
    """Tells files of PixArt by its attention's width, and no convolutions between."""
    other = clues.has(UNET) or clues.has("ff_conv_(inverted|depth|point)$")
    crossed = r"(^|_)transformer_blocks_\d+_attn[12]_to_[qkv]$"
    return not other and (clues.width(crossed) == 1152 and clues.has("to_out_0$|ff_net") or clues.has("adaln_single"))


PIXART = FAMILIES.add(
    "pixart-sigma",
    Family(
        name="pixart-sigma",
        title="PixArt-Σ",
        pipelines=("PixArtSigmaPipeline",),
        denoiser="transformer",
        encoders=(Encoder(component="text_encoder", kohya="lora_te", trained=False, label="t5xxl", width=4096),),
        multiple=8,
        process=Diffusion,
        native=by_config("transformer"),
        channels=kl_channels,
        draws=lambda pipe: same_channels(pipe, "transformer", kl_channels(pipe)),
        defaults=lambda pipe: _DEFAULTS,
        models=(Model(title="XL 2 1024", id="PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", side=1024, defaults=_DEFAULTS),),
        recipes={"dreambooth": _RECIPE, "style": dataclasses.replace(_RECIPE, steps=1500)},
        dtypes={"vae": "float32"},
        presets=presets("transformer", _ATTENTION, _FEEDFORWARD, {"text_encoder": T5}, tools=_ATTENTION),
        kohya="lora_transformer",
        marks=marks,
        identity=lambda parts: Identity("pixart-sigma", "pixart_sigma"),
        called=("pixart",),
        recognise=of_class("transformer", "PixArtTransformer2DModel"),
        check_text=lambda pipe, prompts: check_tokens(pipe.tokenizer, prompts, LENGTH),
        emphasis=True,
        encode_text=encode_text,
        encode_image=kl_encode,
        decode=kl_decode,
        predict=predict,
        streams=PIXART_STREAMS,
    ),
)
