"""Names of the layers of the U-Nets, and how one is told from another."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from studio.families.conditioning import Conditioning
from studio.families.parts.clip import CLIP_ATTENTION, CLIP_FEEDFORWARD

__all__ = ["is_a", "unet_predict", "unet_presets"]

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
    attention, text = dict.fromkeys(encoders, CLIP_ATTENTION), dict.fromkeys(encoders, CLIP_ATTENTION + CLIP_FEEDFORWARD)
    return {
        "attention": {"unet": ATTENTION, **attention},
        "attention+mlp": {"unet": ATTENTION + FEEDFORWARD, **text},
        "all-linear": {"unet": linear, **text},
        "conv": {"unet": convolutions},
        # What the two trainers take unless told otherwise.
        "subject": {"unet": ATTENTION + FEEDFORWARD},
        "style": {"unet": ATTENTION + FEEDFORWARD},
    }


def unet_predict(pipe: Any, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
    """Returns the U-Net's output ``(B, C, h, w)``: ε or v, as the scheduler's ``prediction_type`` says."""
    return pipe.unet(noisy, timesteps, encoder_hidden_states=conditioning.tokens).sample


def is_a(module: nn.Module | None, name: str) -> bool:
    """Whether a module is of a class of this name, which is not imported for it."""
    return module is not None and name in {cls.__name__ for cls in type(module).__mro__}
