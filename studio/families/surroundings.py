"""What stands around the denoisers of public models: autoencoder, scheduler, and what the words look like to them.

It is what a base of a known family needs besides :mod:`studio.families.shapes`, where only shapes are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from studio.families.shapes import Part

__all__ = ["SURROUNDINGS", "Said", "Surrounding"]

_BLOCKS: Final = (128, 256, 512, 512)
_TIMES: Final = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_DIFFUSION: Final = Part("diffusers", "DDPMScheduler", _TIMES)
_V: Final = Part("diffusers", "DDPMScheduler", {**_TIMES, "prediction_type": "v_prediction"})
_FLOW: Final = Part("diffusers", "FlowMatchEulerDiscreteScheduler", {"shift": 3.0})


@dataclass(frozen=True)
class Said:
    """The sizes of an encoded prompt.

    Args:
        tokens: rows and width. pooled: the width of the one vector; 0: there is none. masked: whether a mask says which
            tokens count.
    """

    tokens: tuple[int, int]
    pooled: int = 0
    masked: bool = False


@dataclass(frozen=True, kw_only=True)
class Surrounding:
    """What is around a family's denoiser.

    Args:
        vae: the autoencoder.
        scheduler: one of its process.
        says: ``(the denoiser's config, tokens) -> Said``; tokens of a prompt, None: as many as the family pads to, or
            100 where each prompt has its own length.
    """

    vae: Part
    scheduler: Part
    says: Callable[[Any, int | None], Said]


def _kl(latents: int, scaling: float, shift: float | None = None) -> Part:
    plain = {} if shift is None else dict(use_quant_conv=False, use_post_quant_conv=False, shift_factor=shift)
    config = dict(
        block_out_channels=_BLOCKS, down_block_types=("DownEncoderBlock2D",) * 4, layers_per_block=2,
        up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=latents, scaling_factor=scaling, **plain,
    )  # fmt: skip
    return Part("diffusers", "AutoencoderKL", config)


_SANA_BLOCKS: Final = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
_DC: Final = Part("diffusers", "AutoencoderDC", dict(
    encoder_block_types=_SANA_BLOCKS, decoder_block_types=_SANA_BLOCKS, encoder_layers_per_block=(2, 2, 2, 3, 3, 3),
    downsample_block_type="Conv", upsample_block_type="interpolate", scaling_factor=0.41407,
))  # fmt: skip

SURROUNDINGS: Final[Mapping[str, Surrounding]] = {
    "sd1": Surrounding(
        vae=_kl(4, 0.18215), scheduler=_DIFFUSION, says=lambda own, n: Said((n or 77, own.cross_attention_dim))
    ),
    "sd2": Surrounding(
        vae=_kl(4, 0.18215), scheduler=_V, says=lambda own, n: Said((n or 77, own.cross_attention_dim))
    ),
    "sdxl": Surrounding(
        vae=_kl(4, 0.13025), scheduler=_DIFFUSION,
        says=lambda own, n: Said(
            (n or 77, own.cross_attention_dim),
            own.projection_class_embeddings_input_dim - 6 * own.addition_time_embed_dim,
        ),
    ),
    "sd3": Surrounding(
        vae=_kl(16, 1.5305, 0.0609), scheduler=_FLOW,
        says=lambda own, n: Said((n or 77 + 256, own.joint_attention_dim), own.pooled_projection_dim),
    ),
    "flux1": Surrounding(
        vae=_kl(16, 0.3611, 0.1159), scheduler=_FLOW,
        says=lambda own, n: Said(
            (n or (512 if own.guidance_embeds else 256), own.joint_attention_dim), own.pooled_projection_dim
        ),
    ),
    "flux2": Surrounding(
        vae=Part("diffusers", "AutoencoderKLFlux2"), scheduler=_FLOW,
        says=lambda own, n: Said((n or 512, own.joint_attention_dim)),
    ),
    "qwen-image": Surrounding(
        vae=Part("diffusers", "AutoencoderKLQwenImage"), scheduler=_FLOW,
        says=lambda own, n: Said((n or 100, own.joint_attention_dim)),
    ),
    "z-image": Surrounding(
        vae=_kl(16, 0.3611, 0.1159), scheduler=_FLOW, says=lambda own, n: Said((n or 100, own.cap_feat_dim))
    ),
    "sana": Surrounding(
        vae=_DC, scheduler=_FLOW, says=lambda own, n: Said((n or 300, own.caption_channels), masked=True)
    ),
    "pixart-sigma": Surrounding(
        vae=_kl(4, 0.13025), scheduler=_DIFFUSION,
        says=lambda own, n: Said((n or 300, own.caption_channels), masked=True),
    ),
    "lumina2": Surrounding(
        vae=_kl(16, 0.3611, 0.1159), scheduler=_FLOW,
        says=lambda own, n: Said((n or 256, own.cap_feat_dim), masked=True),
    ),
    "chroma": Surrounding(
        vae=_kl(16, 0.3611, 0.1159), scheduler=_FLOW,
        says=lambda own, n: Said((n or 512, own.joint_attention_dim), masked=True),
    ),
}  # fmt: skip
"""Family -> what is around its denoiser in the public models."""
