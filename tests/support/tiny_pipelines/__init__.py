"""Tiny random pipelines of every image family, built offline in seconds.

``build(name)`` gives a pipeline in evaluation mode, ``CALL[name]`` the arguments of diffusers' own call that makes its
smallest picture. Several kinds may be of one family (Flux.1 dev and schnell).
"""

from __future__ import annotations

import diffusers
import numpy as np
import torch
from diffusers import (
    ChromaPipeline,
    ChromaTransformer2DModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from torch import nn
from transformers import CLIPTextModelWithProjection, Qwen3ForCausalLM, Qwen3Model

from tiny_pipelines.autoencoders import dc, kl, kl_flux2, kl_qwen
from tiny_pipelines.encoders import clip, gemma, mistral, qwen3_config, qwen_vl, t5
from tiny_pipelines.tokenizers import clip_tokenizer, gemma_tokenizer, mistral_tokenizer, qwen_tokenizer, t5_tokenizer

LDM = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
DYNAMIC = dict(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, shift=3.0)


def sd(linear: bool) -> StableDiffusionPipeline:
    tokenizer = clip_tokenizer("!") if linear else clip_tokenizer()
    cross = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=4,
        cross_attention_dim=16, attention_head_dim=(1, 1, 2, 2) if linear else 2, use_linear_projection=linear,
        down_block_types=(cross[0],) * 3 + ("DownBlock2D",), up_block_types=("UpBlock2D",) + (cross[1],) * 3,
    )  # fmt: skip
    scheduler = DDIMScheduler(
        **LDM, clip_sample=False, set_alpha_to_one=False, steps_offset=1,
        prediction_type="v_prediction" if linear else "epsilon",
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=kl(4, 0.18215, None, 64), unet=unet, scheduler=scheduler, tokenizer=tokenizer,
        text_encoder=clip(tokenizer, act="gelu" if linear else "quick_gelu"),
        safety_checker=None, feature_extractor=None, image_encoder=None, requires_safety_checker=False,
    )  # fmt: skip


def sd1() -> StableDiffusionPipeline:
    return sd(linear=False)


def sd2() -> StableDiffusionPipeline:
    return sd(linear=True)


def sdxl() -> StableDiffusionXLPipeline:
    tokenizer = clip_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2), attention_head_dim=(1, 1, 2), use_linear_projection=True,
        cross_attention_dim=16 + 24, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 24,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=kl(4, 0.13025, None, 64, force_upcast=True), unet=unet, tokenizer=tokenizer,
        tokenizer_2=clip_tokenizer("!"),
        text_encoder=clip(tokenizer), add_watermarker=False, force_zeros_for_empty_prompt=True,
        text_encoder_2=clip(tokenizer, CLIPTextModelWithProjection, width=24, act="gelu"),
        scheduler=EulerDiscreteScheduler(**LDM, steps_offset=1, timestep_spacing="leading"),
    )  # fmt: skip


def sd3(large: bool = False) -> StableDiffusion3Pipeline:
    """``large``: as 3.5-large (q/k norms, no second attention); else as 3.5-medium, whose first blocks have attn2."""
    tokenizer, tokenizer_3 = clip_tokenizer(), t5_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=16, out_channels=16, num_layers=3, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=48, caption_projection_dim=16, pooled_projection_dim=40,
        pos_embed_max_size=16, qk_norm="rms_norm", dual_attention_layers=() if large else (0, 1),
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        vae=kl(16, 1.5305, 0.0609, 64), transformer=transformer, tokenizer=tokenizer, tokenizer_2=clip_tokenizer("!"),
        text_encoder=clip(tokenizer, CLIPTextModelWithProjection),
        text_encoder_2=clip(tokenizer, CLIPTextModelWithProjection, width=24, act="gelu"),
        text_encoder_3=t5(tokenizer_3, 48), tokenizer_3=tokenizer_3,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip


def flux1(guidance: bool = True) -> FluxPipeline:
    """``guidance``: as dev (with a guidance embedding); else as schnell."""
    tokenizer, tokenizer_2 = clip_tokenizer(), t5_tokenizer()
    transformer = FluxTransformer2DModel(
        in_channels=64, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=16, axes_dims_rope=(4, 6, 6), guidance_embeds=guidance,
    )  # fmt: skip
    scheduler = DYNAMIC if guidance else dict(shift=1.0)
    return FluxPipeline(
        vae=kl(16, 0.3611, 0.1159, 64), transformer=transformer, tokenizer=tokenizer, text_encoder=clip(tokenizer),
        tokenizer_2=tokenizer_2, text_encoder_2=t5(tokenizer_2),
        scheduler=FlowMatchEulerDiscreteScheduler(**scheduler),
    )  # fmt: skip


def flux1_schnell() -> FluxPipeline:
    return flux1(guidance=False)


def flux2_transformer(text: int, guidance: bool) -> Flux2Transformer2DModel:
    return Flux2Transformer2DModel(
        in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=1,
        joint_attention_dim=text, axes_dims_rope=(4, 4, 4, 4), guidance_embeds=guidance,
    )  # fmt: skip


def flux2() -> Flux2Pipeline:
    tokenizer = mistral_tokenizer()
    return Flux2Pipeline(
        vae=kl_flux2(), transformer=flux2_transformer(3 * 8, True), tokenizer=tokenizer,
        text_encoder=mistral(tokenizer), scheduler=FlowMatchEulerDiscreteScheduler(**DYNAMIC),
    )  # fmt: skip


def flux2_klein() -> Flux2KleinPipeline:
    tokenizer = qwen_tokenizer()
    return Flux2KleinPipeline(
        vae=kl_flux2(), transformer=flux2_transformer(3 * 8, False), tokenizer=tokenizer,
        text_encoder=Qwen3ForCausalLM(qwen3_config(tokenizer, layers=28, width=8)), is_distilled=False,
        scheduler=FlowMatchEulerDiscreteScheduler(**DYNAMIC),
    )  # fmt: skip


def qwen_image() -> QwenImagePipeline:
    tokenizer = qwen_tokenizer()
    transformer = QwenImageTransformer2DModel(
        in_channels=64, out_channels=16, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    scheduler = dict(use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, max_image_seq_len=8192)
    return QwenImagePipeline(
        vae=kl_qwen(), transformer=transformer, tokenizer=tokenizer, text_encoder=qwen_vl(tokenizer),
        scheduler=FlowMatchEulerDiscreteScheduler(**scheduler, shift_terminal=0.02),
    )  # fmt: skip


def z_image() -> ZImagePipeline:
    tokenizer = qwen_tokenizer()
    transformer = ZImageTransformer2DModel(
        in_channels=16, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=16,
        axes_dims=[4, 6, 6], axes_lens=[1024, 64, 64],
    )  # fmt: skip
    nn.init.normal_(transformer.x_pad_token)
    nn.init.normal_(transformer.cap_pad_token)
    return ZImagePipeline(
        vae=kl(16, 0.3611, 0.1159, 64), transformer=transformer, tokenizer=tokenizer,
        text_encoder=Qwen3Model(qwen3_config(tokenizer, layers=3)),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
    )  # fmt: skip


def sana() -> SanaPipeline:
    tokenizer = gemma_tokenizer()
    transformer = SanaTransformer2DModel(
        in_channels=8, out_channels=8, num_layers=2, num_attention_heads=4, attention_head_dim=4,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=16,
        sample_size=32,
    )  # fmt: skip
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return SanaPipeline(
        tokenizer=tokenizer, text_encoder=gemma(tokenizer), vae=dc(), transformer=transformer, scheduler=scheduler
    )


def pixart_sigma() -> PixArtSigmaPipeline:
    tokenizer = t5_tokenizer()
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2,
        cross_attention_dim=16, sample_size=32, caption_channels=32, use_additional_conditions=False,
    )  # fmt: skip
    return PixArtSigmaPipeline(
        tokenizer=tokenizer, text_encoder=t5(tokenizer), vae=kl(4, 0.13025, None, 64), transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
    )  # fmt: skip


def lumina2() -> Lumina2Pipeline:
    tokenizer = gemma_tokenizer()
    transformer = Lumina2Transformer2DModel(
        sample_size=8, in_channels=16, hidden_size=32, num_layers=2, num_refiner_layers=1, num_attention_heads=2,
        num_kv_heads=1, multiple_of=16, axes_dim_rope=(4, 6, 6), axes_lens=(300, 64, 64), cap_feat_dim=16,
    )  # fmt: skip
    return Lumina2Pipeline(
        transformer=transformer, vae=kl(16, 0.3611, 0.1159, 64), tokenizer=tokenizer, text_encoder=gemma(tokenizer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
    )  # fmt: skip


def chroma() -> ChromaPipeline:
    tokenizer = t5_tokenizer()
    transformer = ChromaTransformer2DModel(
        in_channels=64, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, axes_dims_rope=(4, 6, 6), approximator_num_channels=64, approximator_hidden_dim=16,
        approximator_layers=1,
    )  # fmt: skip
    return ChromaPipeline(
        vae=kl(16, 0.3611, 0.1159, 64), transformer=transformer, tokenizer=tokenizer, text_encoder=t5(tokenizer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
    )  # fmt: skip


BUILDERS = {
    "sd1": sd1, "sd2": sd2, "sdxl": sdxl, "sd3": sd3, "flux1": flux1, "flux1-schnell": flux1_schnell, "flux2": flux2,
    "flux2-klein": flux2_klein, "qwen-image": qwen_image, "z-image": z_image, "sana": sana,
    "pixart-sigma": pixart_sigma, "lumina2": lumina2, "chroma": chroma,
}  # fmt: skip
FAMILY = {kind: kind for kind in BUILDERS} | {"flux1-schnell": "flux1", "flux2-klein": "flux2"}
"""Kind -> its family."""
PROMPT, NEGATIVE = "a photo of sks dog", "a cat"
SIDE = 64
COMMON = dict(prompt=PROMPT, num_inference_steps=2, height=SIDE, width=SIDE)
CALL = {
    "sd1": COMMON | dict(negative_prompt=NEGATIVE, guidance_scale=5.0),
    "sd2": COMMON | dict(negative_prompt=NEGATIVE, guidance_scale=5.0),
    "sdxl": COMMON | dict(negative_prompt=NEGATIVE, guidance_scale=5.0),
    "sd3": COMMON | dict(negative_prompt=NEGATIVE, guidance_scale=5.0),
    "flux1": COMMON | dict(guidance_scale=3.5),
    "flux1-schnell": COMMON | dict(guidance_scale=0.0, max_sequence_length=256),
    "flux2": COMMON | dict(guidance_scale=4.0),
    "flux2-klein": COMMON | dict(guidance_scale=4.0),
    "qwen-image": COMMON | dict(negative_prompt=NEGATIVE, true_cfg_scale=4.0),
    "z-image": COMMON | dict(negative_prompt=NEGATIVE, guidance_scale=4.0),
    "sana": COMMON | dict(negative_prompt=NEGATIVE, guidance_scale=4.5, use_resolution_binning=False),
    "pixart-sigma": COMMON | dict(negative_prompt=NEGATIVE, guidance_scale=4.5, use_resolution_binning=False,
                                  clean_caption=False),
    "lumina2": COMMON | dict(negative_prompt=NEGATIVE, guidance_scale=4.0),
    "chroma": COMMON | dict(negative_prompt=NEGATIVE, guidance_scale=5.0),
}  # fmt: skip


def build(name: str, seed: int = 0) -> diffusers.DiffusionPipeline:
    """Returns a tiny pipeline in evaluation mode (components made from configs are born in training mode)."""
    torch.manual_seed(seed)
    pipe = BUILDERS[name]()
    for part in modules(pipe).values():
        part.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def modules(pipe: diffusers.DiffusionPipeline) -> dict[str, nn.Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}


def run(pipe: diffusers.DiffusionPipeline, name: str, seed: int = 1, **changes: object) -> np.ndarray:
    call = CALL[name] | dict(output_type="np") | changes
    return np.asarray(pipe(**call, generator=torch.Generator().manual_seed(seed))[0])
