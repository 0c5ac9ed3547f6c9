"""What the names of several families' layers look like in adapter files, with ``_`` for every dot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from studio.families.native import Clues

__all__ = ["FLUX", "STREAMS", "UNET", "in_streams", "unet_marks", "xl_marks"]

UNET: Final = r"(down|up)_blocks_\d|mid_block_|(in|out)put_blocks_\d|middle_block_"
STREAMS: Final = r"(^|_)transformer_blocks_\d+_attn_"
FLUX: Final = r"(double|single)_blocks_\d|single_transformer_blocks_\d"
_DENOISER: Final = (
    rf"{UNET}|{FLUX}|joint_blocks_\d|transformer_blocks_\d|(^|_)layers_\d+_(attn|attention|feed_forward)_"
)
_CROSS: Final = "attn2_to_[kv]$"
_TEXT: Final = "(text_model|text_encoder|^lora_te).*self_attn_[qkv]_proj$"
_SEVERAL: Final = "^lora_te[123]_|^text_encoder_[23]_"


def unet_marks(cross: int, text: int) -> Callable[[Clues], bool]:
    """Returns what tells the files of a U-Net with one text encoder.

    Args:
        cross: the width of the text that it attends to. text: the width of the encoder.
    """

    def marks(clues: Clues) -> bool:
        if clues.has(UNET):
            return clues.width(_CROSS) == cross
        return not clues.has(_DENOISER) and not clues.has(_SEVERAL) and clues.width(_TEXT) == text

    return marks


def xl_marks(clues: Clues) -> bool:
    """Tells SDXL's files: a text of 2048 numbers, deep blocks, or two CLIP encoders and nothing of SD3's."""
    if clues.has(UNET):
        wide = clues.width(_CROSS)
        told = "(in|out)put_blocks|middle_block|attentions_\\d_transformer_blocks_[2-9]|add_embedding|" + _SEVERAL
        return wide == 2048 or (wide not in (768, 1024) and clues.has(told))
    two = clues.has("^lora_te2_|^text_encoder_2_") and not clues.has("SelfAttention|DenseReluDense")
    return not clues.has(_DENOISER) and (two or clues.width(_TEXT) == 1280)


def in_streams(clues: Clues, *widths: int) -> bool:
    """Tells files of blocks of two streams alone (SD3, Qwen-Image), of these widths."""
    return not clues.has(FLUX) and clues.has(STREAMS) and clues.width(STREAMS + "(to|add)_[qkv]") in widths
