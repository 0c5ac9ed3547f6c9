"""Z-Image and its Turbo: one stream of picture and text, and a language model that reads the prompt.

References:
    Z-Image Team: Z-Image: An Efficient Image Generation Foundation Model, 2025, arXiv:2511.22699.
"""

from __future__ import annotations

import dataclasses
import functools
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from studio.families.conditioning import Conditioning
from studio.families.family import FAMILIES, Defaults, Encoder, Family, Identity, Model, SingleFile
from studio.families.image.flux1 import flux_schedule
from studio.families.native import Clues
from studio.families.parts.contexts import replaced
from studio.families.parts.latents import kl_channels, kl_decode, kl_encode, same_channels
from studio.families.parts.names import LANGUAGE, of_class, presets
from studio.families.parts.native import square
from studio.families.parts.renames import in_blocks, renamed
from studio.families.parts.schedule import flow_shift
from studio.families.parts.silent import last_layer_unread
from studio.families.parts.streams import Z_IMAGE_STREAMS
from studio.families.parts.texts import check_chat
from studio.families.process import Flow
from studio.families.recipe import ImageRecipe
from studio.families.words import Prompts, Words, texts

__all__ = ["Z_IMAGE"]

LENGTH = 512
TURBO = 4.0  # Turbo's scheduler shifts by 3, the base's by 6; nothing else in its folder tells them apart

# diffusers' script: uniform times, no weighting, 1e-4; not measured here
_RECIPE = ImageRecipe(rank=16, learning_rate=1e-4, text_encoder_learning_rate=5e-6, steps=1000, batch_size=1)

_ATTENTION = ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0")
_FEEDFORWARD = ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3")


def _written(pipe: Any, prompt: str | Words) -> str:
    message = [{"role": "user", "content": str(prompt)}]
    return pipe.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, enable_thinking=True)


def check_text(pipe: Any, prompts: Prompts) -> None:
    """Checks that the language model reads prompts whole.

    Raises:
        DoesNotFit: it does not.
    """
    check_chat(pipe.tokenizer, prompts, [_written(pipe, prompt) for prompt in prompts], LENGTH)


def row_length(pipe: Any, prompt: str | Words, negative: bool) -> int:
    """Returns the tokens of a prompt in its template, which no padding fills up to a common number."""
    return len(pipe.tokenizer(_written(pipe, prompt)).input_ids)


def encode_text(pipe: Any, prompts: Prompts, negative: bool) -> Conditioning:
    """Returns the language model's last but one states of each prompt, without padding.

    Args:
        pipe: the pipeline with tokenizer and text encoder.
        prompts: B prompts; ``""`` is the unconditional one.
        negative: makes no difference here.

    Raises:
        DoesNotFit: a prompt is longer than the language model reads.
    """
    check_text(pipe, prompts)
    rows, _ = pipe.encode_prompt(texts(prompts), do_classifier_free_guidance=False, max_sequence_length=LENGTH)
    return functools.reduce(Conditioning.cat, [Conditioning(row[None]) for row in rows])


def predict(pipe: Any, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    """Returns noise - picture, ``(B, C, h, w)``; the module itself counts towards the picture."""
    tokens, mask = conditioning.tokens, conditioning.mask
    captions = list(tokens) if mask is None else [row[kept] for row, kept in zip(tokens, mask, strict=True)]
    with _each_alone(pipe.transformer, conditioning.parts):
        out = pipe.transformer(list(noisy.unsqueeze(2)), (1000 - timesteps) / 1000, captions).sample
    return -torch.stack(list(out)).squeeze(2)


def _each_alone(transformer: Any, parts: int) -> AbstractContextManager[None]:
    """Contexts that stand behind each other have the places that each would have alone, and so has the picture."""
    if parts == 1:
        return nullcontext()

    def placed(own: Any, images: Any, captions: list[Tensor], *sizes: Any) -> Any:
        contexts = [own(images, alone, *sizes) for alone in zip(*(one.chunk(parts) for one in captions), strict=True)]
        made = list(contexts[0])
        for kind in (1, 4, 6):  # the words, their places, and which of them fill up; there are more places than words
            rows = zip(
                *([row[: len(words)] for row, words in zip(one[kind], one[1], strict=True)] for one in contexts),
                strict=True,
            )
            made[kind] = [torch.cat(row) for row in rows]
        return tuple(made)

    return replaced(transformer, "patchify_and_embed", placed)


_TURBO = Defaults(steps=9, length=LENGTH)
_BASE = Defaults(steps=50, guidance=6.0, length=LENGTH)


def _defaults(pipe: Any) -> Defaults:
    if pipe.scheduler.config.get("shift", 0.0) < TURBO:
        return _TURBO
    return _BASE


_ATTENTION_NAMES = {
    "attention.qkv": ("attention.to_q", "attention.to_k", "attention.to_v"),
    "attention.out": ("attention.to_out.0",),
}
_names = renamed(
    in_blocks("layers.{}.", "layers.{}.", _ATTENTION_NAMES)
    | in_blocks("noise_refiner.{}.", "noise_refiner.{}.", _ATTENTION_NAMES)
    | in_blocks("context_refiner.{}.", "context_refiner.{}.", _ATTENTION_NAMES)
    | {
        "x_embedder": ("all_x_embedder.2-1",),
        "final_layer.linear": ("all_final_layer.2-1.linear",),
        "final_layer.adaLN_modulation.1": ("all_final_layer.2-1.adaLN_modulation.1",),
    },
    others=True,
)


def marks(clues: Clues) -> bool:
    """Tells files of Z-Image by its attention's names, or by its width."""
    block = r"(^|_)(layers|refiner)_\d+_"
    named = clues.has(block + "attention_to_[qkv]") or clues.has(r"layers_\d+_adaLN_modulation_0$")
    return named or clues.ratio(block + "attention_qkv$") == 3 or clues.width(block + "feed_forward_w[13]$") == 3840


Z_IMAGE = FAMILIES.add(
    "z-image",
    Family(
        name="z-image",
        title="Z-Image",
        pipelines=("ZImagePipeline",),
        denoiser="transformer",
        encoders=(Encoder(component="text_encoder", trained=False),),
        multiple=16,
        largest=lambda pipe: 16 * min(pipe.transformer.config.axes_lens[1:]),
        process=Flow,
        native=square(1024),
        channels=kl_channels,
        draws=lambda pipe: same_channels(pipe, "transformer", kl_channels(pipe)),
        defaults=_defaults,
        models=(
            Model(title="Z-Image", id="Tongyi-MAI/Z-Image", side=1024, defaults=_BASE),
            Model(title="Turbo", id="Tongyi-MAI/Z-Image-Turbo", side=1024, defaults=_TURBO),
        ),
        recipes={"dreambooth": _RECIPE, "style": dataclasses.replace(_RECIPE, steps=1500)},
        presets=presets("transformer", _ATTENTION, _FEEDFORWARD, {"text_encoder": LANGUAGE}, tools=_ATTENTION),
        kohya="lora_unet",
        names=_names,
        names_in=(),  # trainers write diffusers' in all of them; ComfyUI's converter fused layers
        marks=marks,
        single=SingleFile(
            tells=lambda shapes: "layers.0.adaLN_modulation.0.weight" in shapes and "cap_embedder.0.weight" in shapes,
            configs=lambda shapes: "Tongyi-MAI/Z-Image-Turbo",
            parts={"vae": ("first_stage_model.", "vae.")},
            unread=("norm_final.weight",),
        ),
        identity=lambda parts: Identity("Z-Image", "z_image"),
        called=("z-image", "zimage"),
        silent=last_layer_unread("text_encoder", "layers", "the prompt's states are those before the last layer"),
        recognise=of_class("transformer", "ZImageTransformer2DModel"),
        check_text=check_text,
        row_length=row_length,
        encode_text=encode_text,
        encode_image=kl_encode,
        decode=kl_decode,
        predict=predict,
        streams=Z_IMAGE_STREAMS,
        schedule=flux_schedule,
        shift=flow_shift(patch=2),
    ),
)
