"""Models of public size on the meta device, for the names and numbers of their layers."""

from __future__ import annotations

import torch
import transformers
from diffusers import (
    ChromaTransformer2DModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    Lumina2Transformer2DModel,
    PixArtTransformer2DModel,
    QwenImageTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5EncoderModel,
)

UNET1 = dict(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
UNET2 = dict(sample_size=96, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20), use_linear_projection=True)
UNETX = dict(
    sample_size=128, block_out_channels=(320, 640, 1280), layers_per_block=2, attention_head_dim=(5, 10, 20),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 2, 10),
    use_linear_projection=True, cross_attention_dim=2048, addition_embed_type="text_time", addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
)  # fmt: skip
SD35M = dict(
    sample_size=128, num_layers=24, attention_head_dim=64, num_attention_heads=24, joint_attention_dim=4096,
    caption_projection_dim=1536, pooled_projection_dim=2048, pos_embed_max_size=384, qk_norm="rms_norm",
    dual_attention_layers=tuple(range(13)),
)  # fmt: skip
SD3M = SD35M | dict(pos_embed_max_size=192, qk_norm=None, dual_attention_layers=())
SD35L = SD3M | dict(num_layers=38, num_attention_heads=38, caption_projection_dim=2432, qk_norm="rms_norm")
REAL = {
    "sd1 unet": (UNet2DConditionModel, UNET1),
    "sd2 unet": (UNet2DConditionModel, UNET2),
    "sdxl unet": (UNet2DConditionModel, UNETX),
    "sd3-medium": (SD3Transformer2DModel, SD3M),
    "sd3.5-medium": (SD3Transformer2DModel, SD35M),
    "sd3.5-large": (SD3Transformer2DModel, SD35L),
    "flux.1-dev": (FluxTransformer2DModel, dict(guidance_embeds=True)),
    "flux.1-schnell": (FluxTransformer2DModel, dict(guidance_embeds=False)),
    "flux.2-dev": (Flux2Transformer2DModel, {}),
    "flux.2-klein-9b": (
        Flux2Transformer2DModel,
        dict(num_layers=8, num_single_layers=24, num_attention_heads=32, joint_attention_dim=12288,
             guidance_embeds=False),
    ),
    "flux.2-klein-4b": (
        Flux2Transformer2DModel,
        dict(num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=7680,
             guidance_embeds=False),
    ),
    "qwen-image": (QwenImageTransformer2DModel, {}),
    "z-image": (ZImageTransformer2DModel, dict(axes_lens=[1536, 512, 512])),
    "sana-1.6b": (SanaTransformer2DModel, {}),
    "sana-0.6b": (
        SanaTransformer2DModel,
        dict(num_attention_heads=36, num_layers=28, num_cross_attention_heads=16, cross_attention_head_dim=72,
             cross_attention_dim=1152),
    ),
    "pixart-sigma-1024": (PixArtTransformer2DModel, dict(caption_channels=4096, use_additional_conditions=False)),
    "lumina-image-2": (Lumina2Transformer2DModel, dict(cap_feat_dim=2304, axes_lens=(300, 512, 512))),
    "chroma1": (ChromaTransformer2DModel, {}),
    "CLIP-L": (CLIPTextModel, CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                                             num_attention_heads=12, projection_dim=768)),
    "OpenCLIP-H (sd2)": (CLIPTextModel, CLIPTextConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16, hidden_act="gelu")),
    "OpenCLIP-bigG": (CLIPTextModelWithProjection, CLIPTextConfig(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, projection_dim=1280,
        hidden_act="gelu")),
    "T5-v1.1-XXL encoder": (T5EncoderModel, T5Config(
        vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
        feed_forward_proj="gated-gelu", is_encoder_decoder=False)),
    "Gemma-2-2b": (Gemma2Model, Gemma2Config()),
    "Qwen3-4B": (Qwen3ForCausalLM, Qwen3Config(
        vocab_size=151936, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=True)),
    "Qwen3-8B": (Qwen3ForCausalLM, Qwen3Config(
        vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128)),
    "Qwen2.5-VL-7B": (Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig(
        text_config=dict(vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28,
                         num_attention_heads=28, num_key_value_heads=4),
        vision_config=dict(depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, out_hidden_size=3584))),
    "Mistral-Small-3.2-24B": (Mistral3ForConditionalGeneration, Mistral3Config(
        text_config=dict(model_type="mistral", vocab_size=131072, hidden_size=5120, intermediate_size=32768,
                         num_hidden_layers=40, num_attention_heads=32, num_key_value_heads=8, head_dim=128),
        vision_config=dict(model_type="pixtral", hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
                           intermediate_size=4096, head_dim=64, image_size=1540, patch_size=14),
        tie_word_embeddings=False)),
}  # fmt: skip


def real(name: str) -> nn.Module:
    """A model of public size without memory."""
    cls, config = REAL[name]
    with torch.device("meta"):
        return cls(config) if isinstance(config, transformers.PretrainedConfig) else cls(**config)
