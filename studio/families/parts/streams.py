"""What the layers of each denoiser compute on (:mod:`studio.families.streams`), by their names in diffusers."""

from __future__ import annotations

import dataclasses
from typing import Final

from studio.families.streams import Streams

__all__ = [
    "CHROMA_STREAMS",
    "FLUX1_STREAMS",
    "FLUX2_STREAMS",
    "LUMINA2_STREAMS",
    "PIXART_STREAMS",
    "QWEN_STREAMS",
    "SANA_STREAMS",
    "SD3_STREAMS",
    "UNET_STREAMS",
    "Z_IMAGE_STREAMS",
]

_CROSS: Final = ("attn2.to_k", "attn2.to_v", "attn2.norm_k")  # an attention of its own asks the words
_ADDED: Final = (
    "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out", "attn.norm_added_q",
    "attn.norm_added_k",
)  # fmt: skip

UNET_STREAMS: Final = Streams(
    text=(*_CROSS, "encoder_hid_proj"),
    vector=("time_embedding", "add_embedding", "class_embedding", "time_emb_proj"),
    crossed=("attn2",),
    patch=0,
)
PIXART_STREAMS: Final = Streams(
    text=(*_CROSS, "caption_projection"), vector=("adaln_single",), crossed=("attn2",)
)  # fmt: skip
SANA_STREAMS: Final = Streams(
    text=(*_CROSS, "caption_projection", "caption_norm"), vector=("time_embed",), crossed=("attn2",), patch=1
)  # fmt: skip

SD3_STREAMS: Final = Streams(
    text=(*_ADDED, "context_embedder", "ff_context", "norm1_context", "norm2_context"),
    vector=("time_text_embed", "norm1.linear", "norm1_context.linear", "norm_out.linear"),
    first="image",
    joined=("attn",),
)
FLUX1_STREAMS: Final = Streams(
    text=SD3_STREAMS.text,
    vector=(*SD3_STREAMS.vector, "norm.linear"),
    joint=("single_transformer_blocks",),
    joined=("attn",),
)
CHROMA_STREAMS: Final = dataclasses.replace(FLUX1_STREAMS, vector=("time_text_embed", "distilled_guidance_layer"))
FLUX2_STREAMS: Final = dataclasses.replace(
    FLUX1_STREAMS,
    vector=(
        "time_guidance_embed", "double_stream_modulation_img", "double_stream_modulation_txt",
        "single_stream_modulation", "norm_out.linear",
    ),
    patch=1,
)  # fmt: skip
QWEN_STREAMS: Final = Streams(
    text=(*_ADDED, "txt_norm", "txt_in", "txt_mlp", "txt_norm1", "txt_norm2"),
    vector=("time_text_embed", "img_mod", "txt_mod", "norm_out.linear"),
    joined=("attn",),
)

Z_IMAGE_STREAMS: Final = Streams(
    text=("cap_embedder", "context_refiner"),
    joint=("layers", "all_final_layer"),
    vector=("t_embedder", "adaLN_modulation"),
    first="image",
    joined=("layers.*.attention",),
    refined=("context_refiner.*.attention",),
    packed=True,
    multiple=32,
    flat=("all_x_embedder", "cap_embedder"),
)
LUMINA2_STREAMS: Final = Streams(
    text=("time_caption_embed.caption_embedder", "context_refiner"),
    joint=("layers", "norm_out"),
    vector=("time_caption_embed.timestep_embedder", "norm1.linear", "norm_out.linear_1"),
    joined=("layers.*.attn",),
    refined=("context_refiner.*.attn",),
    packed=True,
)
