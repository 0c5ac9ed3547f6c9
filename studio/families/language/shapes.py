"""Public language models as configs: their layers, without their weights, as :mod:`studio.families.shapes` has images'.

The values are those of the ``config.json`` that each model was published with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from torch import nn

from studio.families.shapes import Part
from studio.registry import Registry

__all__ = ["LANGUAGE_SHAPES", "LanguageShape"]


@dataclass(frozen=True)
class LanguageShape:
    """A public language model.

    Args:
        part: its class and config. untied: whether its head has a weight of its own, which T5's config class hides.
    """

    part: Part
    untied: bool = False

    def build(self) -> nn.Module:
        """Returns the model on the meta device."""
        model = self.part.build()
        if self.untied:
            head: Any = model.get_submodule("lm_head")
            head.weight = nn.Parameter(head.weight.detach().clone())
        return model


LANGUAGE_SHAPES: Final[Registry[LanguageShape]] = Registry("public language model")


def _add(name: str, kind: str, *, untied: bool = False, **config: Any) -> None:
    LANGUAGE_SHAPES.add(name, LanguageShape(Part("transformers", _CLASSES[kind], config, f"{kind}Config"), untied))


_CLASSES: Final = {
    "Llama": "LlamaForCausalLM", "Qwen2": "Qwen2ForCausalLM", "Qwen3": "Qwen3ForCausalLM", "Phi3": "Phi3ForCausalLM",
    "Mistral": "MistralForCausalLM", "Gemma2": "Gemma2ForCausalLM", "Bloom": "BloomForCausalLM",
    "GPT2": "GPT2LMHeadModel", "T5": "T5ForConditionalGeneration", "MT5": "MT5ForConditionalGeneration",
}  # fmt: skip


def _decoder(name: str, kind: str, sizes: tuple[int, int, int, int, int], vocabulary: int, **more: Any) -> None:
    """Adds a decoder of width, inner width, layers, heads, heads of keys."""
    width, inner, layers, heads, keys = sizes
    _add(
        name, kind, vocab_size=vocabulary, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=keys, **more,
    )  # fmt: skip


_decoder("tinyllama-1.1b", "Llama", (2048, 5632, 22, 32, 4), 32000)
_decoder("llama-2-7b", "Llama", (4096, 11008, 32, 32, 32), 32000, max_position_embeddings=4096)
_decoder("llama-2-13b", "Llama", (5120, 13824, 40, 40, 40), 32000, max_position_embeddings=4096)
_decoder("llama-3-8b", "Llama", (4096, 14336, 32, 32, 8), 128256, max_position_embeddings=8192)
_decoder("llama-3.2-1b", "Llama", (2048, 8192, 16, 32, 8), 128256, tie_word_embeddings=True, head_dim=64)
_decoder("llama-3.2-3b", "Llama", (3072, 8192, 28, 24, 8), 128256, tie_word_embeddings=True, head_dim=128)
_decoder("llama-3-70b", "Llama", (8192, 28672, 80, 64, 8), 128256, max_position_embeddings=8192)
_decoder("mistral-7b", "Mistral", (4096, 14336, 32, 32, 8), 32000, max_position_embeddings=32768)
_decoder("qwen2.5-0.5b", "Qwen2", (896, 4864, 24, 14, 2), 151936, tie_word_embeddings=True)
_decoder("qwen2.5-1.5b", "Qwen2", (1536, 8960, 28, 12, 2), 151936, tie_word_embeddings=True)
_decoder("qwen2.5-3b", "Qwen2", (2048, 11008, 36, 16, 2), 151936, tie_word_embeddings=True)
_decoder("qwen2.5-7b", "Qwen2", (3584, 18944, 28, 28, 4), 152064)
_decoder("qwen3-0.6b", "Qwen3", (1024, 3072, 28, 16, 8), 151936, head_dim=128, tie_word_embeddings=True)
_decoder("qwen3-4b", "Qwen3", (2560, 9728, 36, 32, 8), 151936, head_dim=128, tie_word_embeddings=True)
_decoder("qwen3-8b", "Qwen3", (4096, 12288, 36, 32, 8), 151936, head_dim=128)
_decoder("phi-3-mini", "Phi3", (3072, 8192, 32, 32, 32), 32064, pad_token_id=32000)
_decoder("gemma-2-2b", "Gemma2", (2304, 9216, 26, 8, 4), 256000, head_dim=256)
_add("gpt2", "GPT2")
_add("bloomz-560m", "Bloom", vocab_size=250880, hidden_size=1024, n_layer=24, n_head=16)
_add("bloomz-7b1", "Bloom", vocab_size=250880, hidden_size=4096, n_layer=30, n_head=32)
_add(
    "t0-3b", "T5", vocab_size=32128, d_model=2048, d_kv=64, d_ff=5120, num_layers=24, num_heads=32,
    feed_forward_proj="gated-gelu", untied=True, decoder_start_token_id=0,
)  # fmt: skip
_add(
    "mt0-xxl", "MT5", vocab_size=250112, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64,
    feed_forward_proj="gated-gelu", untied=True, decoder_start_token_id=0,
)  # fmt: skip
