"""Public models as configs: their layers, without their weights, for everything that needs names and sizes alone.

A shape is built on the meta device: it takes no memory, is never downloaded, and adapter files load onto it, are
converted on it and measured on it.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import nn

from studio.families.family import Outline
from studio.registry import Registry

__all__ = ["SHAPES", "Part", "Shape", "outline"]


@dataclass(frozen=True)
class Part:
    """One component of a public model.

    Args:
        library: ``"diffusers"`` or ``"transformers"``. cls: the class there. config: what it is made with.
        config_cls: the class of its config, in transformers.
    """

    library: str
    cls: str
    config: Mapping[str, Any] = field(default_factory=dict)
    config_cls: str = ""

    def build(self) -> nn.Module:
        """Returns the module on the meta device."""
        library = importlib.import_module(self.library)
        cls = getattr(library, self.cls)
        with torch.device("meta"):
            if not self.config_cls:
                return cls(**self.config)  # type: ignore[no-any-return]
            return cls(getattr(library, self.config_cls)(**self.config))  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A public model.

    Args:
        family: a name of FAMILIES. parts: component -> what it is, as its pipeline names it.
    """

    family: str
    parts: Mapping[str, Part]


SHAPES: Final[Registry[Shape]] = Registry("public model")


def outline(name: str, components: Collection[str] | None = None) -> Outline:
    """Returns a public model on the meta device.

    Args:
        name: of SHAPES. components: those that are wanted; None: all of its denoiser and text encoders.

    Raises:
        UnknownName: no public model of that name is known.

    Example:
        >>> sd1 = outline("sd1", ["unet"])
        >>> next(sd1.components["unet"].parameters()).device.type
        'meta'
    """
    parts = SHAPES[name].parts
    return Outline({one: part.build() for one, part in parts.items() if components is None or one in components})


def _denoiser(cls: str, **config: Any) -> Part:
    return Part("diffusers", cls, config)


def _encoder(cls: str, config_cls: str, **config: Any) -> Part:
    return Part("transformers", cls, config, config_cls)


def _clip(cls: str, width: int, layers: int, heads: int, **config: Any) -> Part:
    return _encoder(
        cls, "CLIPTextConfig", hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
        num_attention_heads=heads, **config,
    )  # fmt: skip


def _qwen3(width: int, inner: int, **config: Any) -> Part:
    return _encoder(
        "Qwen3ForCausalLM", "Qwen3Config", vocab_size=151936, hidden_size=width, intermediate_size=inner,
        num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, head_dim=128, **config,
    )  # fmt: skip


CLIP_L: Final = _clip("CLIPTextModel", 768, 12, 12, projection_dim=768)
CLIP_L_PROJECTED: Final = _clip("CLIPTextModelWithProjection", 768, 12, 12, projection_dim=768)
OPENCLIP_H: Final = _clip("CLIPTextModel", 1024, 23, 16, hidden_act="gelu")
OPENCLIP_BIG_G: Final = _clip("CLIPTextModelWithProjection", 1280, 32, 20, projection_dim=1280, hidden_act="gelu")
T5_XXL: Final = _encoder(
    "T5EncoderModel", "T5Config", vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
    feed_forward_proj="gated-gelu", is_encoder_decoder=False,
)  # fmt: skip
GEMMA_2B: Final = _encoder("Gemma2Model", "Gemma2Config")
QWEN3_4B: Final = _qwen3(2560, 9728, tie_word_embeddings=True)
QWEN3_8B: Final = _qwen3(4096, 12288)
QWEN_VL: Final = _encoder(
    "Qwen2_5_VLForConditionalGeneration", "Qwen2_5_VLConfig",
    text_config=dict(vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28,
                     num_attention_heads=28, num_key_value_heads=4),
    vision_config=dict(depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, out_hidden_size=3584),
)  # fmt: skip
MISTRAL_24B: Final = _encoder(
    "Mistral3ForConditionalGeneration", "Mistral3Config",
    text_config=dict(model_type="mistral", vocab_size=131072, hidden_size=5120, intermediate_size=32768,
                     num_hidden_layers=40, num_attention_heads=32, num_key_value_heads=8, head_dim=128),
    vision_config=dict(model_type="pixtral", hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
                       intermediate_size=4096, head_dim=64, image_size=1540, patch_size=14),
    tie_word_embeddings=False,
)  # fmt: skip

_SDXL: Final = dict(
    sample_size=128, block_out_channels=(320, 640, 1280), layers_per_block=2, attention_head_dim=(5, 10, 20),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 2, 10),
    use_linear_projection=True, cross_attention_dim=2048, addition_embed_type="text_time", addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
)  # fmt: skip
_SD35_MEDIUM: Final = dict(
    sample_size=128, num_layers=24, attention_head_dim=64, num_attention_heads=24, joint_attention_dim=4096,
    caption_projection_dim=1536, pooled_projection_dim=2048, pos_embed_max_size=384, qk_norm="rms_norm",
    dual_attention_layers=tuple(range(13)),
)  # fmt: skip
_SD3_MEDIUM: Final = {**_SD35_MEDIUM, "pos_embed_max_size": 192, "qk_norm": None, "dual_attention_layers": ()}
_SD35_LARGE: Final = {
    **_SD3_MEDIUM, "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "qk_norm": "rms_norm",
}  # fmt: skip
_KLEIN_9B: Final = dict(
    num_layers=8, num_single_layers=24, num_attention_heads=32, joint_attention_dim=12288, guidance_embeds=False
)
_KLEIN_4B: Final = dict(
    num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=7680, guidance_embeds=False
)
_SANA_600M: Final = dict(
    num_attention_heads=36, num_layers=28, num_cross_attention_heads=16, cross_attention_head_dim=72,
    cross_attention_dim=1152,
)  # fmt: skip


def _add(name: str, family: str, denoiser: str, part: Part, *encoders: Part) -> None:
    words = ["text_encoder", *(f"text_encoder_{number}" for number in range(2, len(encoders) + 1))]
    SHAPES.add(name, Shape(family=family, parts={denoiser: part, **dict(zip(words, encoders, strict=False))}))


_THREE: Final = (CLIP_L_PROJECTED, OPENCLIP_BIG_G, T5_XXL)
_add("sd1", "sd1", "unet", _denoiser(
    "UNet2DConditionModel", sample_size=64, cross_attention_dim=768, attention_head_dim=8), CLIP_L)  # fmt: skip
_add("sd2", "sd2", "unet", _denoiser(
    "UNet2DConditionModel", sample_size=96, cross_attention_dim=1024, attention_head_dim=(5, 10, 20, 20),
    use_linear_projection=True), OPENCLIP_H)  # fmt: skip
_add("sdxl", "sdxl", "unet", _denoiser("UNet2DConditionModel", **_SDXL), CLIP_L, OPENCLIP_BIG_G)
_add("sd3-medium", "sd3", "transformer", _denoiser("SD3Transformer2DModel", **_SD3_MEDIUM), *_THREE)
_add("sd3.5-medium", "sd3", "transformer", _denoiser("SD3Transformer2DModel", **_SD35_MEDIUM), *_THREE)
_add("sd3.5-large", "sd3", "transformer", _denoiser("SD3Transformer2DModel", **_SD35_LARGE), *_THREE)
for _name, _guided in (("flux-dev", True), ("flux-schnell", False)):
    _add(_name, "flux1", "transformer", _denoiser("FluxTransformer2DModel", guidance_embeds=_guided), CLIP_L, T5_XXL)
_add("flux2-dev", "flux2", "transformer", _denoiser("Flux2Transformer2DModel"), MISTRAL_24B)
_add("flux2-klein-9b", "flux2", "transformer", _denoiser("Flux2Transformer2DModel", **_KLEIN_9B), QWEN3_8B)
_add("flux2-klein-4b", "flux2", "transformer", _denoiser("Flux2Transformer2DModel", **_KLEIN_4B), QWEN3_4B)
_add("qwen-image", "qwen-image", "transformer", _denoiser("QwenImageTransformer2DModel"), QWEN_VL)
_add("z-image", "z-image", "transformer", _denoiser(
    "ZImageTransformer2DModel", axes_lens=[1536, 512, 512]), QWEN3_4B)  # fmt: skip
_add("sana-1.6b", "sana", "transformer", _denoiser("SanaTransformer2DModel"), GEMMA_2B)
_add("sana-0.6b", "sana", "transformer", _denoiser("SanaTransformer2DModel", **_SANA_600M), GEMMA_2B)
_add("pixart-sigma", "pixart-sigma", "transformer", _denoiser(
    "PixArtTransformer2DModel", caption_channels=4096, use_additional_conditions=False), T5_XXL)  # fmt: skip
_add("lumina2", "lumina2", "transformer", _denoiser(
    "Lumina2Transformer2DModel", cap_feat_dim=2304, axes_lens=(300, 512, 512)), GEMMA_2B)  # fmt: skip
_add("chroma", "chroma", "transformer", _denoiser("ChromaTransformer2DModel"), T5_XXL)
