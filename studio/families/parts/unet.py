"""The U-Nets: the names of their layers, and how they are called."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from studio.families.conditioning import Conditioning
from studio.families.parts.names import CLIP, presets

__all__ = ["unet_predict", "unet_presets"]

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEEDFORWARD = ("ff.net.0.proj", "ff.net.2")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "downsamplers.*.conv", "upsamplers.*.conv")
TIME = ("time_emb_proj", "time_embedding.linear_1", "time_embedding.linear_2")
PROJECTIONS = ("proj_in", "proj_out")
SIZES = ("add_embedding.linear_1", "add_embedding.linear_2")


def unet_presets(
    *, linear_projections: bool, sizes: bool = False, encoders: tuple[str, ...]
) -> dict[str, dict[str, tuple[str, ...]]]:
    """Returns the presets of a U-Net with CLIP encoders.

    Args:
        linear_projections: whether ``proj_in`` and ``proj_out`` are linear layers, or convolutions.
        sizes: whether it embeds the picture's size.
        encoders: the components that read text.
    """
    linear = ATTENTION + FEEDFORWARD + TIME + (PROJECTIONS if linear_projections else ()) + (SIZES if sizes else ())
    convolutions = CONVOLUTIONS + (() if linear_projections else PROJECTIONS)
    more: dict[str, dict[str, tuple[str, ...]]] = {
        "all-linear": {"unet": linear, **{name: CLIP[0] + CLIP[1] for name in encoders}},
        "conv": {"unet": convolutions},
    }
    return presets("unet", ATTENTION, FEEDFORWARD, dict.fromkeys(encoders, CLIP)) | more


def unet_predict(pipe: Any, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    """Returns the U-Net's output: ε or v, as the scheduler's ``prediction_type`` says.

    Args:
        pipe: the pipeline with ``unet``.
        noisy: the latents ``(B, C, h, w)``.
        timesteps: of each row, ``(B,)``.
        conditioning: what the prompts say.
    """
    return pipe.unet(noisy, timesteps, encoder_hidden_states=conditioning.tokens).sample
