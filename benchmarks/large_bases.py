"""Bases of real size with random weights, written in shards, so that no more than one of those is ever in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

__all__ = ["llama_config", "write_llama", "write_sdxl"]

_SHARD = 1 << 30
_DRAWN = 1 << 22  # numbers that are drawn, and written again and again
_SDXL = {"vae": ("diffusers", "AutoencoderKL"), "scheduler": ("diffusers", "EulerDiscreteScheduler")}


def llama_config() -> Any:
    """The shape of Llama 2 with seven billion parameters, with the packaged tokenizer's ids."""
    from transformers import AutoTokenizer, LlamaConfig

    from studio.families.language import LANGUAGE_BASES

    return LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        max_position_embeddings=2048, architectures=["LlamaForCausalLM"], dtype="bfloat16",
        **_ids(AutoTokenizer.from_pretrained(LANGUAGE_BASES["facts"])),
    )  # fmt: skip


def write_llama(folder: Path) -> int:
    """Writes that model as a transformers folder; returns the bytes of its weights."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    from studio.families.language import LANGUAGE_BASES

    folder.mkdir(parents=True, exist_ok=True)
    config = llama_config()
    config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(LANGUAGE_BASES["facts"]).save_pretrained(folder)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    return _write(model, folder, "model")


def _vae() -> Any:
    """The autoencoder of Stable Diffusion XL, without numbers."""
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    with torch.device("meta"):
        return AutoencoderKL(
            **blocks, block_out_channels=(128, 256, 512, 512), layers_per_block=2, scaling_factor=0.13025,
            force_upcast=True, sample_size=1024,
        )  # fmt: skip


def write_sdxl(folder: Path) -> int:
    """Writes a pipeline as Stable Diffusion XL's, all components of their published shape; returns its bytes."""
    import diffusers
    import transformers
    from diffusers import EulerDiscreteScheduler

    from studio.families.base import BASES
    from studio.families.shapes import SHAPES

    tokenizer = transformers.AutoTokenizer.from_pretrained(BASES["emoji"] / "tokenizer", model_max_length=77)
    for name in ("tokenizer", "tokenizer_2"):
        tokenizer.save_pretrained(folder / name)
    EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").save_pretrained(
        folder / "scheduler"
    )
    total = _write(_vae(), folder / "vae", "diffusion_pytorch_model")
    parts = SHAPES["sdxl"].parts
    for name, part in parts.items():
        module: Any = part.build()
        if part.library == "transformers":
            vars(module.config).update(_ids(tokenizer), dtype="bfloat16", architectures=[part.cls])
        stem = "model" if part.library == "transformers" else "diffusion_pytorch_model"
        total += _write(module, folder / name, stem)
    kinds = _SDXL | {name: (part.library, part.cls) for name, part in parts.items()}
    kinds |= dict.fromkeys(("tokenizer", "tokenizer_2"), ("transformers", "CLIPTokenizer"))
    index = {"_class_name": "StableDiffusionXLPipeline", "_diffusers_version": diffusers.__version__}
    (folder / "model_index.json").write_text(json.dumps(index | kinds))
    return total


def _ids(tokenizer: Any) -> dict[str, int]:
    return {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def _write(module: Any, folder: Path, stem: str) -> int:
    """Writes a module that is on the meta device, its config included, with random weights in bf16."""
    folder.mkdir(parents=True, exist_ok=True)
    if stem == "model":  # transformers'
        module.config.save_pretrained(folder)
    else:
        module.save_config(folder)
    shards = list(_shards(module))
    generator, where, total = torch.Generator().manual_seed(0), dict[str, str](), 0
    for number, shard in enumerate(shards):
        name = f"{stem}-{number + 1:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else f"{stem}.safetensors"
        tensors = {key: _drawn(key, value, generator) for key, value in shard.items()}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        where |= dict.fromkeys(shard, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    return total


def _shards(module: nn.Module) -> Iterator[Mapping[str, Tensor]]:
    """The tensors of a module, so many bytes of bf16 at a time."""
    shard: dict[str, Tensor] = {}
    for key, value in module.state_dict().items():
        if shard and 2 * sum(map(torch.numel, (*shard.values(), value))) > _SHARD:
            yield shard
            shard = {}
        shard[key] = value
    yield shard


def _drawn(key: str, like: Tensor, generator: torch.Generator) -> Tensor:
    """Matrices that keep a signal's size about as it is, and norms that do nothing.

    A large one has the same rows again and again, which nothing that is measured here sees, and is written sooner.
    """
    if like.ndim < 2:
        return torch.full(like.shape, float(key.endswith("weight")), dtype=torch.bfloat16)
    bound = like[0].numel() ** -0.5
    few = torch.empty(min(_DRAWN, like.numel())).uniform_(-bound, bound, generator=generator).bfloat16()
    times = -(-like.numel() // few.numel())
    return few.repeat(times)[: like.numel()].reshape(like.shape).contiguous()
