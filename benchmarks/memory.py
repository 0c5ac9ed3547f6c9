"""How much memory opening a base and drawing with it takes: a process's peak over the bytes of the weights.

Run it with ``python -m benchmarks.memory``. It writes a random base of the SDXL family into a temporary folder, 2 GB in
fp16 (of the published shape, narrower), and in a fresh process opens it and draws a picture. The peak is all that the
process had resident at once: Python, torch, diffusers, the weights and what drawing takes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LIMIT = 1.3
SIDE, STEPS = 64, 1

DRAW = """
import json, sys
from studio.pipelines import ImagePipeline
from studio.device import memory
import torch
before = memory(torch.device("cpu")).used
pipe = ImagePipeline.open(sys.argv[1], dtype="fp16")
opened = memory(torch.device("cpu")).used
pipe.generate("a dog", seeds=[0], steps=%d, width=%d, height=%d)
print(json.dumps({"before": before, "opened": opened, "peak": memory(torch.device("cpu")).peak}))
""" % (STEPS, SIDE, SIDE)  # noqa: UP031 - the text has braces

MAKE = "import sys; from benchmarks.memory import make; make(sys.argv[1])"


def unet() -> dict[str, Any]:
    """Returns the config of SDXL's UNet, narrower."""
    return {
        "sample_size": 128, "block_out_channels": (160, 320, 640), "layers_per_block": 2,
        "attention_head_dim": (5, 10, 20), "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 2048, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }  # fmt: skip


def make(folder: str) -> None:
    """Writes the base: weights of fp16, drawn at random, which compute without overflowing."""
    import torch
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from studio.families import open_base

    tokenizer = open_base("emoji").pipe.tokenizer
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    first = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, **ids)
    second = CLIPTextConfig(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=4, num_attention_heads=20, projection_dim=1280,
        hidden_act="gelu", **ids,
    )  # fmt: skip
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    torch.set_default_dtype(torch.float16)
    pipe = StableDiffusionXLPipeline(
        vae=AutoencoderKL(
            **blocks, block_out_channels=(128, 256, 512, 512), layers_per_block=2, scaling_factor=0.13025,
            force_upcast=True, sample_size=1024,
        ),
        unet=UNet2DConditionModel(**unet()), tokenizer=tokenizer, tokenizer_2=tokenizer,
        text_encoder=CLIPTextModel(first), text_encoder_2=CLIPTextModelWithProjection(second), add_watermarker=False,
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
    )  # fmt: skip
    pipe.save_pretrained(folder)


def child(code: str, folder: Path) -> str:
    """Runs code in a fresh process, which keeps nothing beyond the folder's, and returns what it printed."""
    own = os.environ | {"STUDIO_CACHE": str(folder.parent / "cache")}
    command = [sys.executable, "-c", code, str(folder)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=own).stdout


def measure(base: Path, files: list[Path]) -> float:
    """Opens a base and draws; prints what that took, and returns the peak over the bytes of its weights."""
    weights = sum(file.stat().st_size for file in files)
    found = json.loads(child(DRAW, base).splitlines()[-1])
    ratio = found["peak"] / weights
    print(f"{base.name}: {weights / 1e9:.2f} GB of weights, fp16; a picture of {SIDE} x {SIDE}, {STEPS} step")
    print(f"  {found['before'] / 1e9:5.2f} GB before it was opened (Python, torch, the studio)")
    print(f"  {found['opened'] / 1e9:5.2f} GB when it was open")
    print(f"  {found['peak'] / 1e9:5.2f} GB at most: {ratio:.2f} x its weights (limit {LIMIT})")
    return float(ratio)


def main() -> int:
    """Prints the figures; returns 1 where the limit is exceeded."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "sdxl")
        child(MAKE, folder)
        ratio = measure(folder, list(folder.glob("*/*.safetensors")))
    return int(ratio > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
