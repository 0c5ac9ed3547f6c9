"""Stable Diffusion 3 and 3.5: a transformer over picture and text together, two CLIP text encoders and T5.

References:
    Esser et al.: Scaling Rectified Flow Transformers for High-Resolution Image Synthesis, 2024, arXiv:2403.03206.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, nn

from studio.families.conditioning import Conditioning
from studio.families.family import FAMILIES, Defaults, Encoder, Family, Identity, Model, Shapes, Silent, SingleFile
from studio.families.native import Clues, Native
from studio.families.parts.emphasis import emphasised, token_weights
from studio.families.parts.latents import kl_channels, kl_decode, kl_encode, same_channels
from studio.families.parts.marks import FLUX, STREAMS, in_streams
from studio.families.parts.names import CLIP, T5, of_class, presets
from studio.families.parts.native import by_config
from studio.families.parts.renames import QKV, in_blocks, renamed
from studio.families.parts.schedule import flow_shift
from studio.families.parts.streams import SD3_STREAMS
from studio.families.parts.texts import check_tokens
from studio.families.process import Flow
from studio.families.recipe import ImageRecipe
from studio.families.words import Prompts, Words, texts

__all__ = ["SD3"]

LENGTH = 256  # tokens of T5; CLIP's vectors stand in front of them

_DEFAULTS = Defaults(steps=28, guidance=7.0, length=LENGTH)

# diffusers' script: logit-normal, shifted by the scheduler's 3, errors of the picture, 1e-4; not measured here.
_RECIPE = ImageRecipe(
    rank=16, learning_rate=1e-4, text_encoder_learning_rate=5e-6, steps=1000, batch_size=1,
    weighting="picture", density="logit-normal", shifted=True,
)  # fmt: skip

_ATTENTION = (
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj",
    "attn.to_add_out",
)  # fmt: skip
_SECOND = ("attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0")
_FEEDFORWARD = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")


def check_text(pipe: Any, prompts: Prompts) -> None:
    """Checks that T5 reads prompts whole, or CLIP where there is no T5.

    Raises:
        DoesNotFit: it does not; what would have been cut off is named.
    """
    if pipe.text_encoder_3 is not None:
        check_tokens(pipe.tokenizer_3, prompts, LENGTH)
    else:
        check_tokens(pipe.tokenizer, prompts)


def encode_text(pipe: Any, prompts: Prompts, negative: bool) -> Conditioning:
    """Returns CLIP's and T5's states one behind the other, and both CLIPs' pooled vectors.

    Args:
        pipe: the pipeline with tokenizers and text encoders.
        prompts: B prompts; ``""`` is the unconditional one.
        negative: makes no difference here.

    Raises:
        DoesNotFit: a prompt is longer than T5 reads; CLIP reads the beginning of a long one.
    """
    check_text(pipe, prompts)
    tokens, _, pooled, _ = pipe.encode_prompt(
        texts(prompts), None, None, do_classifier_free_guidance=False, max_sequence_length=LENGTH
    )
    return Conditioning(_weighed(pipe, tokens, prompts), pooled)


def _weighed(pipe: Any, tokens: Tensor, prompts: Prompts) -> Tensor:
    """The states of each encoder weighed by themselves: CLIP's side by side, T5's behind them ``(B, L, D)``."""
    if not any(isinstance(prompt, Words) and prompt.weighed for prompt in prompts):
        return tokens
    places, tokens, start = pipe.tokenizer.model_max_length, tokens.clone(), 0
    for tokenizer, encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)):
        mine = (slice(None), slice(places), slice(start, start + encoder.config.hidden_size))
        tokens[mine] = emphasised(tokens[mine], token_weights(tokenizer, prompts, places))
        start += encoder.config.hidden_size
    if pipe.text_encoder_3 is not None:
        tokens[:, places:] = emphasised(tokens[:, places:], token_weights(pipe.tokenizer_3, prompts, LENGTH))
    return tokens


def predict(pipe: Any, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    """Returns noise - picture, ``(B, C, h, w)``."""
    return pipe.transformer(
        hidden_states=noisy, timestep=timesteps, encoder_hidden_states=conditioning.tokens,
        pooled_projections=conditioning.pooled,
    ).sample  # fmt: skip


def _identity(parts: Mapping[str, nn.Module]) -> Identity:
    config: Any = (parts.get("transformer") or parts[""]).config
    if config.num_layers >= 38:
        return Identity("stable-diffusion-3-5-large", "sd3_5-large")
    if config.dual_attention_layers:
        return Identity("stable-diffusion-3-5-medium", "sd3_5-medium")
    return Identity("stable-diffusion-3-medium", "sd3_m")


def _configs(shapes: Shapes) -> str:
    """3.5 large has 38 blocks, and 3.5 medium a second attention in its first ones."""
    if "joint_blocks.37.x_block.mlp.fc1.weight" in shapes:
        return "stabilityai/stable-diffusion-3.5-large"
    if "joint_blocks.0.x_block.attn2.qkv.weight" in shapes:
        return "stabilityai/stable-diffusion-3.5-medium"
    return "stabilityai/stable-diffusion-3-medium-diffusers"


def _silent(component: str, module: nn.Module) -> tuple[Silent, ...]:
    if component != "transformer":
        return ()
    config: Any = module.config
    last = f"transformer_blocks.{config.num_layers - 1}.attn.add_q_proj"
    return (Silent((last,), "nothing asks for the text behind the last block"),)


_PICTURE = {
    "attn.qkv": QKV,
    "attn.proj": ("attn.to_out.0",),
    "attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "attn2.proj": ("attn2.to_out.0",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
    "adaLN_modulation.1": ("norm1.linear",),
}
_TEXT = {
    "attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "attn.proj": ("attn.to_add_out",),
    "mlp.fc1": ("ff_context.net.0.proj",),
    "mlp.fc2": ("ff_context.net.2",),
    "adaLN_modulation.1": ("norm1_context.linear",),
}
_names = renamed(
    in_blocks("joint_blocks.{}.x_block.", "transformer_blocks.{}.", _PICTURE)
    | in_blocks("joint_blocks.{}.context_block.", "transformer_blocks.{}.", _TEXT)
    | {
        "context_embedder": ("context_embedder",),
        "x_embedder.proj": ("pos_embed.proj",),
        "t_embedder.mlp.0": ("time_text_embed.timestep_embedder.linear_1",),
        "t_embedder.mlp.2": ("time_text_embed.timestep_embedder.linear_2",),
        "y_embedder.mlp.0": ("time_text_embed.text_embedder.linear_1",),
        "y_embedder.mlp.2": ("time_text_embed.text_embedder.linear_2",),
        "final_layer.linear": ("proj_out",),
        "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    },
    swapped=("final_layer.adaLN_modulation.1",),
)


def native(layers: Collection[str]) -> tuple[Native, ...]:
    """Returns Stability's names; the text's last modulation is that of a last norm, scale and shift swapped."""
    last = max((int(name.split(".")[1]) for name in layers if name.startswith("transformer_blocks.")), default=0)
    ends = f"joint_blocks.{last}.context_block.adaLN_modulation.1"
    return tuple(dataclasses.replace(one, swapped=True) if one.name == ends else one for one in _names(layers))


def marks(clues: Clues) -> bool:
    """Tells files of SD3 by Stability's names, or by the widths of its three sizes."""
    own = clues.has(r"joint_blocks_\d") or in_streams(clues, 1536, 2432)
    return own or (clues.has(STREAMS) and not clues.has(FLUX) and clues.has("_norm1_context_|_attn2_to_"))


SD3 = FAMILIES.add(
    "sd3",
    Family(
        name="sd3",
        title="Stable Diffusion 3",
        pipelines=("StableDiffusion3Pipeline",),
        denoiser="transformer",
        encoders=(
            Encoder(component="text_encoder", kohya="lora_te1", level="text_model.", label="clip_l", width=768),
            Encoder(component="text_encoder_2", kohya="lora_te2", level="text_model.", label="clip_g", width=1280),
            Encoder(component="text_encoder_3", kohya="lora_te3", trained=False, label="t5xxl", width=4096),
        ),
        multiple=16,
        largest=lambda pipe: 16 * pipe.transformer.config.pos_embed_max_size,
        process=Flow,
        native=by_config("transformer"),
        channels=kl_channels,
        draws=lambda pipe: same_channels(pipe, "transformer", kl_channels(pipe)),
        defaults=lambda pipe: _DEFAULTS,
        models=(
            Model(title="medium", id="stabilityai/stable-diffusion-3-medium-diffusers", side=1024, defaults=_DEFAULTS),
            Model(title="3.5 medium", id="stabilityai/stable-diffusion-3.5-medium", side=1024, defaults=_DEFAULTS),
            Model(title="3.5 large", id="stabilityai/stable-diffusion-3.5-large", side=1024, defaults=_DEFAULTS),
        ),
        recipes={"dreambooth": _RECIPE, "style": dataclasses.replace(_RECIPE, steps=1500)},
        presets=presets(
            "transformer", _ATTENTION + _SECOND, _FEEDFORWARD,
            {"text_encoder": CLIP, "text_encoder_2": CLIP, "text_encoder_3": T5}, tools=_ATTENTION,
        ),
        kohya="lora_unet",
        names=native,
        marks=marks,
        single=SingleFile(
            tells=lambda shapes: "joint_blocks.0.context_block.adaLN_modulation.1.bias" in shapes,
            configs=_configs,
            parts={
                "text_encoder": ("text_encoders.clip_l.",),
                "text_encoder_2": ("text_encoders.clip_g.",),
                "text_encoder_3": ("text_encoders.t5xxl.",),
                "vae": ("first_stage_model.", "vae."),
            },
        ),
        identity=_identity,
        called=("stable-diffusion-3", "stable-diffusion-v3", "sd3", "sd-3"),
        silent=_silent,
        recognise=of_class("transformer", "SD3Transformer2DModel"),
        check_text=check_text,
        emphasis=True,
        encode_text=encode_text,
        encode_image=kl_encode,
        decode=kl_decode,
        predict=predict,
        streams=SD3_STREAMS,
        # diffusers' pipeline sets the steps alone, by which the scheduler shifts twice; its pictures are drawn so
        shift=flow_shift(patch=2),
    ),
)  # fmt: skip
