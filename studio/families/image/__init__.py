"""The image families, one file each; a new one is imported here."""

from __future__ import annotations

from studio.families.image import chroma, flux1, flux2, lumina2, pixart, qwen_image, sana, sd1, sd3, sdxl, z_image

__all__ = ["chroma", "flux1", "flux2", "lumina2", "pixart", "qwen_image", "sana", "sd1", "sd3", "sdxl", "z_image"]
