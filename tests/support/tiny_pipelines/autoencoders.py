"""Autoencoders of some ten thousand weights."""

from __future__ import annotations

from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderKLFlux2, AutoencoderKLQwenImage

DOWN, UP = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
VAE = dict(
    in_channels=3, out_channels=3, down_block_types=DOWN, up_block_types=UP, block_out_channels=(4, 4, 8, 8),
    layers_per_block=1, norm_num_groups=4,
)  # fmt: skip


def kl(latents: int, scaling: float, shift: float | None, side: int, **more: object) -> AutoencoderKL:
    plain = {} if shift is None else dict(use_quant_conv=False, use_post_quant_conv=False, shift_factor=shift)
    return AutoencoderKL(
        **VAE, latent_channels=latents, sample_size=side, scaling_factor=scaling, **(plain | more)
    )  # fmt: skip


def kl_flux2(latents: int = 4) -> AutoencoderKLFlux2:
    vae = AutoencoderKLFlux2(**VAE, latent_channels=latents, sample_size=64)
    vae.bn.running_mean.normal_(0, 0.5)  # a real one has statistics; 0 and 1 would hide a forgotten normalisation
    vae.bn.running_var.uniform_(0.5, 2.0)
    return vae


def kl_qwen() -> AutoencoderKLQwenImage:
    return AutoencoderKLQwenImage(base_dim=4, z_dim=16, dim_mult=[1, 1, 2, 2], num_res_blocks=1)


def dc() -> AutoencoderDC:
    blocks = ("ResBlock",) * 3 + ("EfficientViTBlock",) * 3
    return AutoencoderDC(
        latent_channels=8, attention_head_dim=4, encoder_block_types=blocks, decoder_block_types=blocks,
        encoder_block_out_channels=(4, 4, 4, 8, 8, 8), decoder_block_out_channels=(4, 4, 4, 8, 8, 8),
        encoder_layers_per_block=(1,) * 6, decoder_layers_per_block=(1,) * 6, downsample_block_type="Conv",
        upsample_block_type="interpolate", scaling_factor=0.41407,
    )  # fmt: skip
