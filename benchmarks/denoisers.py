"""Denoisers of every family between tiny and real: random weights, a few blocks, the widths of one attention head up.

A row is what makes the module, and the shapes of what it reads. They are called through their family's ``predict``, as
drawing and training do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from studio.families import FAMILIES, Conditioning, Family, Shot

__all__ = ["DENOISERS", "Denoiser"]

_UNET: Mapping[str, Any] = {
    "sample_size": 32, "block_out_channels": (128, 256, 384), "layers_per_block": 1, "cross_attention_dim": 256,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 8,
}  # fmt: skip
_JOINT: Mapping[str, Any] = {
    "num_layers": 2, "attention_head_dim": 64, "num_attention_heads": 6, "joint_attention_dim": 384,
}  # fmt: skip
_AXES = (16, 24, 24)


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """A denoiser of middle size.

    Args:
        family: whose row calls it.
        cls: its class in diffusers.
        config: the arguments of its class.
        channels: C of the latents ``(B, C, h, w)``.
        side: h and w.
        text: width of the text's states, of which there are :attr:`tokens`.
        pooled: width of the pooled vector; 0: it reads none.
        masked: whether it wants a mask.
        tokens: L.
        vae: pixels per cell of its autoencoder, along one side.
    """

    family: str
    cls: str
    config: Mapping[str, Any]
    channels: int
    side: int
    text: int
    pooled: int = 0
    masked: bool = False
    tokens: int = 64
    vae: int = 8

    @property
    def row(self) -> Family:
        """The row of its family."""
        return FAMILIES[self.family]

    def make(self) -> nn.Module:
        """Makes the module, with weights of one seed that let every layer be heard."""
        import diffusers

        torch.manual_seed(0)
        module = getattr(diffusers, self.cls)(**self.config).eval().requires_grad_(False)
        for parameter in module.parameters():
            if not parameter.any() or not torch.isfinite(parameter).all():
                nn.init.normal_(parameter, std=0.02)
        return module

    def inputs(self, module: nn.Module) -> tuple[Tensor, Tensor, Conditioning]:
        """Makes noisy latents ``(1, C, h, w)``, a time ``(1,)`` and a text."""
        draws = torch.Generator().manual_seed(1)
        text = Conditioning(
            torch.randn(1, self.tokens, self.text, generator=draws),
            torch.randn(1, self.pooled, generator=draws) if self.pooled else None,
            mask=torch.ones(1, self.tokens, dtype=torch.bool) if self.masked else None,
        )  # fmt: skip
        holder = self.holder(module)
        side = self.side * self.row.downscale(holder)
        text = self.row.condition(holder, text, [Shot(size=(side, side), embedded=1.0)])
        noisy = torch.randn(1, self.channels, self.side, self.side, generator=draws)
        return noisy, torch.tensor([500.0 if self.row.process.word == "flow" else 500]), text

    def holder(self, module: nn.Module) -> Any:
        """What stands for a pipeline in front of the row's functions."""
        return SimpleNamespace(**{self.row.denoiser: module}, vae_scale_factor=self.vae)


DENOISERS: Mapping[str, Denoiser] = {
    "sd1": Denoiser(family="sd1", cls="UNet2DConditionModel", config=_UNET, channels=4, side=32, text=256),
    "sd2": Denoiser(
        family="sd2", cls="UNet2DConditionModel", channels=4, side=32, text=256,
        config={**_UNET, "use_linear_projection": True, "attention_head_dim": (2, 4, 6)},
    ),
    "sdxl": Denoiser(
        family="sdxl", cls="UNet2DConditionModel", channels=4, side=32, text=256, pooled=256,
        config={
            **_UNET, "use_linear_projection": True, "attention_head_dim": (2, 4, 6), "addition_embed_type": "text_time",
            "transformer_layers_per_block": (1, 2, 4), "addition_time_embed_dim": 64,
            "projection_class_embeddings_input_dim": 6 * 64 + 256,
        },
    ),
    "sd3": Denoiser(
        family="sd3", cls="SD3Transformer2DModel", channels=16, side=32, text=384, pooled=256,
        config={
            **_JOINT, "sample_size": 32, "num_layers": 3, "caption_projection_dim": 384, "pooled_projection_dim": 256,
            "pos_embed_max_size": 32, "qk_norm": "rms_norm", "dual_attention_layers": (0,),
        },
    ),
    "flux1": Denoiser(
        family="flux1", cls="FluxTransformer2DModel", channels=16, side=32, text=384, pooled=256,
        config={
            **_JOINT, "in_channels": 64, "num_single_layers": 4, "pooled_projection_dim": 256, "axes_dims_rope": _AXES,
            "guidance_embeds": True,
        },
    ),
    "flux2": Denoiser(
        family="flux2", cls="Flux2Transformer2DModel", channels=128, side=16, text=384,
        config={
            **_JOINT, "in_channels": 128, "num_single_layers": 4, "axes_dims_rope": (16, 16, 16, 16),
            "guidance_embeds": True,
        },
    ),
    "qwen-image": Denoiser(
        family="qwen-image", cls="QwenImageTransformer2DModel", channels=16, side=32, text=384,
        config={**_JOINT, "num_layers": 3, "in_channels": 64, "out_channels": 16, "axes_dims_rope": _AXES},
    ),
    "z-image": Denoiser(
        family="z-image", cls="ZImageTransformer2DModel", channels=16, side=32, text=384,
        config={
            "in_channels": 16, "dim": 384, "n_layers": 4, "n_refiner_layers": 1, "n_heads": 6, "n_kv_heads": 6,
            "cap_feat_dim": 384, "axes_dims": list(_AXES), "axes_lens": [512, 64, 64],
        },
    ),
    "sana": Denoiser(
        family="sana", cls="SanaTransformer2DModel", channels=32, side=16, text=384, masked=True, vae=32,
        config={
            "in_channels": 32, "out_channels": 32, "num_layers": 4, "num_attention_heads": 12, "attention_head_dim": 32,
            "num_cross_attention_heads": 6, "cross_attention_head_dim": 64, "cross_attention_dim": 384,
            "caption_channels": 384, "sample_size": 16,
        },
    ),
    "pixart-sigma": Denoiser(
        family="pixart-sigma", cls="PixArtTransformer2DModel", channels=4, side=32, text=384, masked=True,
        config={
            "num_attention_heads": 6, "attention_head_dim": 64, "in_channels": 4, "out_channels": 8, "num_layers": 4,
            "cross_attention_dim": 384, "sample_size": 32, "caption_channels": 384, "use_additional_conditions": False,
        },
    ),
    "lumina2": Denoiser(
        family="lumina2", cls="Lumina2Transformer2DModel", channels=16, side=32, text=384, masked=True,
        config={
            "sample_size": 32, "in_channels": 16, "hidden_size": 384, "num_layers": 4, "num_refiner_layers": 1,
            "num_attention_heads": 6, "num_kv_heads": 2, "multiple_of": 64, "axes_dim_rope": _AXES,
            "axes_lens": (512, 64, 64), "cap_feat_dim": 384,
        },
    ),
    "chroma": Denoiser(
        family="chroma", cls="ChromaTransformer2DModel", channels=16, side=32, text=384, masked=True,
        config={
            **_JOINT, "in_channels": 64, "num_single_layers": 4, "axes_dims_rope": _AXES,
            "approximator_num_channels": 64, "approximator_hidden_dim": 256, "approximator_layers": 2,
        },
    ),
}  # fmt: skip
"""Kind -> its denoiser; one of each family."""
