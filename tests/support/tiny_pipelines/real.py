"""Models of public size on the meta device, for the names and numbers of their layers."""

from __future__ import annotations

from torch import nn

from studio.families.shapes import (
    CLIP_L,
    GEMMA_2B,
    MISTRAL_24B,
    OPENCLIP_BIG_G,
    OPENCLIP_H,
    QWEN3_4B,
    QWEN3_8B,
    QWEN_VL,
    SHAPES,
    T5_XXL,
    Part,
)

_NAMES = {
    "sd1 unet": "sd1", "sd2 unet": "sd2", "sdxl unet": "sdxl", "flux.1-dev": "flux-dev",
    "flux.1-schnell": "flux-schnell", "flux.2-dev": "flux2-dev", "flux.2-klein-9b": "flux2-klein-9b",
    "flux.2-klein-4b": "flux2-klein-4b", "pixart-sigma-1024": "pixart-sigma", "lumina-image-2": "lumina2",
    "chroma1": "chroma",
}  # fmt: skip


def _denoiser(name: str) -> Part:
    return next(iter(SHAPES[name].parts.values()))


REAL: dict[str, Part] = {
    **{ours: _denoiser(name) for ours, name in _NAMES.items()},
    **{name: _denoiser(name) for name in SHAPES if name not in _NAMES.values()},
    "CLIP-L": CLIP_L, "OpenCLIP-H (sd2)": OPENCLIP_H, "OpenCLIP-bigG": OPENCLIP_BIG_G, "T5-v1.1-XXL encoder": T5_XXL,
    "Gemma-2-2b": GEMMA_2B, "Qwen3-4B": QWEN3_4B, "Qwen3-8B": QWEN3_8B, "Qwen2.5-VL-7B": QWEN_VL,
    "Mistral-Small-3.2-24B": MISTRAL_24B,
}  # fmt: skip


def real(name: str) -> nn.Module:
    """A model of public size without memory."""
    return REAL[name].build()
