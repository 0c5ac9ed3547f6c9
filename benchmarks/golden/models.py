"""The small models: layers of every kind, and tiny language models with 64 words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
import transformers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import studio
from benchmarks.golden.inputs import packaged


class Block(nn.Module):
    """A module that is no layer by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class Layers(nn.Module):
    """One layer of every kind; words and pictures in, one row per sample out."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm, self.rms = nn.Embedding(10, 12), nn.LayerNorm(12), nn.RMSNorm(12)
        self.linear, self.gpt2, self.narrow = nn.Linear(12, 16), Conv1D(16, 16), nn.Linear(16, 16, bias=False)
        self.attention, self.block = nn.MultiheadAttention(16, 2, batch_first=True), Block()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.circular = nn.Conv2d(8, 8, 3, stride=2, padding=1, padding_mode="circular")
        self.dilated = nn.Conv2d(8, 8, (3, 2), padding=(2, 1), dilation=2)
        self.grouped, self.point = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.Conv2d(8, 8, 1)
        self.group_norm, self.batch_norm = nn.GroupNorm(2, 8), nn.BatchNorm2d(8, momentum=0.0)
        self.line, self.cube = nn.Conv1d(8, 6, 3, stride=2), nn.Conv3d(1, 4, (1, 2, 2))

    def forward(self, words: Tensor, picture: Tensor) -> Tensor:
        x = self.linear(self.rms(self.norm(self.embedding(words))))
        x = self.block(self.narrow(torch.tanh(self.gpt2(x))))
        x = self.attention(x, x, x, need_weights=False)[0]
        y = self.point(self.grouped(self.dilated(self.circular(self.conv(picture)))))
        y = self.batch_norm(self.group_norm(y))
        return torch.cat([x.flatten(1), self.line(y.flatten(2)).flatten(1), self.cube(y[:, None]).flatten(1)], dim=1)


class Parameters(nn.Module):
    """A module that reads bare parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.projection, self.gain = nn.Parameter(torch.randn(16, 12)), nn.Parameter(torch.randn(12))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) @ self.projection * self.gain


def two_linears() -> nn.Sequential:
    """Two layers, one without a bias, from seed 0."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 16, bias=False))


def quantized() -> nn.Module:
    """The two layers in four bits."""
    model = two_linears().eval()
    studio.quantize(model, bits=4, group=8)
    return model


WORDS: Final[Mapping[str, Any]] = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
SIZES: Final[Mapping[str, Any]] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}


def llama() -> nn.Module:
    config = transformers.LlamaConfig(**WORDS, **SIZES, num_key_value_heads=2, tie_word_embeddings=True)
    return transformers.LlamaForCausalLM(config)


def mixtral() -> nn.Module:
    config = transformers.MixtralConfig(**WORDS, **SIZES, num_key_value_heads=2, head_dim=4, num_local_experts=4)
    return transformers.MixtralForCausalLM(config)


def gpt2() -> nn.Module:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**WORDS, n_embd=16, n_layer=2, n_head=4, n_positions=64)
    )


def t5() -> nn.Module:
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 4}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**WORDS, **sizes, decoder_start_token_id=0))


def bert() -> nn.Module:
    return transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=64, **SIZES))


def clip() -> nn.Module:
    return transformers.CLIPTextModel(
        transformers.CLIPTextConfig(vocab_size=64, **SIZES, bos_token_id=1, eos_token_id=2)
    )


def facts() -> nn.Module:
    """The packaged language base."""
    return transformers.AutoModelForCausalLM.from_pretrained(packaged("facts/model")).float().eval()
