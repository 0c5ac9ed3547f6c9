"""Lumina-Image 2.0: one stream of picture and text, and Gemma, told what it is to help with.

References:
    Qin et al.: Lumina-Image 2.0: A Unified and Efficient Image Generative Framework, 2025, arXiv:2503.21758.
"""

from __future__ import annotations

import dataclasses
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from studio.families.conditioning import Conditioning
from studio.families.family import FAMILIES, Defaults, Encoder, Family, Identity, Model, SingleFile
from studio.families.image.flux1 import flux_schedule
from studio.families.native import Clues
from studio.families.parts.contexts import moved_up, places, replaced
from studio.families.parts.emphasis import token_weights, weighed
from studio.families.parts.guide import renormed, width_norm
from studio.families.parts.latents import kl_channels, kl_decode, kl_encode, same_channels
from studio.families.parts.names import LANGUAGE, of_class, presets
from studio.families.parts.native import by_config
from studio.families.parts.renames import QKV, in_blocks, renamed
from studio.families.parts.schedule import flow_shift
from studio.families.parts.silent import last_layer_unread
from studio.families.parts.streams import LUMINA2_STREAMS
from studio.families.parts.texts import check_tokens
from studio.families.process import Flow
from studio.families.recipe import ImageRecipe
from studio.families.words import Prompts, Words, texts

__all__ = ["LUMINA2"]

LENGTH = 256

_DEFAULTS = Defaults(steps=30, guidance=4.0, length=LENGTH)

# diffusers' script trains at 1e-4 and, its time being reversed, mostly near the picture; evenly spread times are taken
# here, as for the other flows; not measured
_RECIPE = ImageRecipe(rank=16, learning_rate=1e-4, text_encoder_learning_rate=5e-6, steps=1000, batch_size=1)

_ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
_FEEDFORWARD = ("feed_forward.linear_1", "feed_forward.linear_2", "feed_forward.linear_3")


def check_text(pipe: Any, prompts: Prompts) -> None:
    """Checks that Gemma reads prompts whole, behind what it is told.

    Raises:
        DoesNotFit: it does not; what would have been cut off is named.
    """
    told = len(pipe.tokenizer(f"{pipe.system_prompt} <Prompt Start> ").input_ids)
    check_tokens(pipe.tokenizer, prompts, LENGTH - told)


def row_length(pipe: Any, prompt: str | Words, negative: bool) -> int:
    """Returns the tokens that count: the denoiser takes the others off."""
    return len(pipe.tokenizer(_written(pipe, prompt, negative)).input_ids)


def _written(pipe: Any, prompt: str | Words, negative: bool) -> str:
    return f"{_before(pipe, negative)}{prompt}"


def _before(pipe: Any, negative: bool) -> str:
    return "" if negative else f"{pipe.system_prompt} <Prompt Start> "


def encode_text(pipe: Any, prompts: Prompts, negative: bool) -> Conditioning:
    """Returns Gemma's last but one states of a prompt, behind what it is told unless it is a negative one.

    Args:
        pipe: the pipeline with tokenizer and text encoder.
        prompts: B prompts.
        negative: whether guidance leads away from them.

    Raises:
        DoesNotFit: a prompt is longer than Gemma reads.
    """
    check_text(pipe, prompts)
    written = [_written(pipe, prompt, negative) for prompt in texts(prompts)]
    tokens, mask = pipe._get_gemma_prompt_embeds(written, max_sequence_length=LENGTH)
    weights = token_weights(pipe.tokenizer, prompts, LENGTH, before=_before(pipe, negative))
    return weighed(Conditioning(tokens, mask=mask.bool()), weights)


def predict(pipe: Any, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    """Returns noise - picture, ``(B, C, h, w)``; the module itself counts towards the picture."""
    tokens, mask, parts = conditioning.tokens, conditioning.mask, conditioning.parts
    if parts > 1:
        tokens, mask = moved_up(conditioning)
    with _each_alone(pipe.transformer, parts):
        return -pipe.transformer(
            hidden_states=noisy, timestep=1 - timesteps / 1000, encoder_hidden_states=tokens,
            encoder_attention_mask=mask,
        ).sample  # fmt: skip


def _each_alone(transformer: Any, parts: int) -> AbstractContextManager[None]:
    """Contexts that stand behind each other have the places that each would have alone, and so has the picture."""
    if parts == 1:
        return nullcontext()

    def placed(own: Any, latents: Tensor, mask: Tensor) -> tuple[Any, ...]:
        counts = mask.sum(1)
        one = torch.arange(mask.shape[1], device=mask.device) < (counts // parts)[:, None]
        patches, words, picture, *_ = own(latents, one)
        rows = [row[places(count, parts, row.device)] for row, count in zip(words, counts.tolist(), strict=True)]
        joint = [torch.cat([row, place]) for row, place in zip(rows, picture, strict=True)]
        filled = F.pad(pad_sequence(rows, batch_first=True), (0, 0, 0, mask.shape[1] - int(counts.max())))
        return patches, filled, picture, pad_sequence(joint, batch_first=True), counts.tolist(), [*map(len, joint)]

    return replaced(transformer.rope_embedder, "forward", placed)


_BLOCK_NAMES = {
    "attention.qkv": QKV,
    "attention.out": ("attn.to_out.0",),
    "feed_forward.w1": ("feed_forward.linear_1",),
    "feed_forward.w2": ("feed_forward.linear_2",),
    "feed_forward.w3": ("feed_forward.linear_3",),
    "adaLN_modulation.1": ("norm1.linear",),
}
_names = renamed(
    in_blocks("layers.{}.", "layers.{}.", _BLOCK_NAMES)
    | in_blocks("noise_refiner.{}.", "noise_refiner.{}.", _BLOCK_NAMES)
    | in_blocks("context_refiner.{}.", "context_refiner.{}.", _BLOCK_NAMES)
    | {
        "x_embedder": ("x_embedder",),
        "cap_embedder.1": ("time_caption_embed.caption_embedder.1",),
        "t_embedder.mlp.0": ("time_caption_embed.timestep_embedder.linear_1",),
        "t_embedder.mlp.2": ("time_caption_embed.timestep_embedder.linear_2",),
        "final_layer.linear": ("norm_out.linear_2",),
        "final_layer.adaLN_modulation.1": ("norm_out.linear_1",),
    }
)


def marks(clues: Clues) -> bool:
    """Tells files of Lumina 2 by its names, or by keys and values that are narrower than queries."""
    block = r"(^|_)(layers|refiner)_\d+_"
    named = "(attn_to_|feed_forward_linear_|norm1_linear)|layers_\\d+_adaLN_modulation_1$"
    fused = clues.has(block + "attention_qkv$") and clues.ratio(block + "attention_qkv$") != 3
    return clues.has(block + named) or fused or clues.width(block + "feed_forward_w[13]$") == 2304


LUMINA2 = FAMILIES.add(
    "lumina2",
    Family(
        name="lumina2",
        title="Lumina-Image 2.0",
        pipelines=("Lumina2Pipeline", "Lumina2Text2ImgPipeline"),
        denoiser="transformer",
        encoders=(Encoder(component="text_encoder", kohya="lora_te", trained=False),),
        multiple=16,
        largest=lambda pipe: 16 * min(pipe.transformer.config.axes_lens[1:]),
        process=Flow,
        native=by_config("transformer"),
        channels=kl_channels,
        draws=lambda pipe: same_channels(pipe, "transformer", kl_channels(pipe)),
        defaults=lambda pipe: _DEFAULTS,
        models=(Model(title="2.0", id="Alpha-VLLM/Lumina-Image-2.0", side=1024, defaults=_DEFAULTS),),
        recipes={"dreambooth": _RECIPE, "style": dataclasses.replace(_RECIPE, steps=1500)},
        presets=presets("transformer", _ATTENTION, _FEEDFORWARD, {"text_encoder": LANGUAGE}, tools=_ATTENTION),
        kohya="lora_unet",
        names=_names,
        marks=marks,
        single=SingleFile(
            tells=lambda shapes: {"layers.0.adaLN_modulation.1.weight", "cap_embedder.0.weight"} <= shapes.keys(),
            configs=lambda shapes: "Alpha-VLLM/Lumina-Image-2.0",
            unread=("norm_final.weight",),
        ),
        identity=lambda parts: Identity("lumina-2", "lumina2"),
        called=("lumina2", "lumina-2", "lumina-image-2"),
        silent=last_layer_unread("text_encoder", "layers", "the prompt's states are those before the last layer"),
        recognise=of_class("transformer", "Lumina2Transformer2DModel"),
        check_text=check_text,
        row_length=row_length,
        roles=True,
        emphasis=True,
        encode_text=encode_text,
        encode_image=kl_encode,
        decode=kl_decode,
        predict=predict,
        streams=LUMINA2_STREAMS,
        guide=renormed(width_norm),
        schedule=flux_schedule,
        shift=flow_shift(patch=2),
    ),
)
