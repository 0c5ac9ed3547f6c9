"""A prefix on attentions of other builds: other names of the cache, fused projections, biases by distance.

The expected numbers come from the definition: the prefix is keys and values that stand in the cache before the text.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import DynamicCache

import studio
from studio.errors import UnsupportedLayer

M = 4
SMALL = {"vocab_size": 64, "n_layer": 2, "n_head": 4}
MODELS = {
    "gptj": lambda: transformers.GPTJForCausalLM(
        transformers.GPTJConfig(**SMALL, n_embd=32, rotary_dim=4, n_positions=64)
    ),
    "codegen": lambda: transformers.CodeGenForCausalLM(
        transformers.CodeGenConfig(**SMALL, n_embd=32, rotary_dim=4, n_positions=64)
    ),
    "bloom": lambda: transformers.BloomForCausalLM(transformers.BloomConfig(**SMALL, hidden_size=32)),
    "falcon": lambda: falcon(alibi=False),
}


def falcon(**settings: Any) -> Any:
    shape = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return transformers.FalconForCausalLM(
        transformers.FalconConfig(**shape, multi_query=False, new_decoder_architecture=False, **settings)
    )


@pytest.mark.parametrize("kind", MODELS)
def test_a_prefix_stands_in_the_cache(kind: str) -> None:
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    ids = torch.randint(3, 60, (3, 5), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain = model(ids).logits
        studio.attach(model, studio.PrefixTuning(tokens=M))
        actual, generated = model(ids).logits, _generated(model, ids)
        adapter = model._modules["adapters"].get("default")
        columns = adapter.made().view(M, 2, 2, 4, 8).permute(1, 2, 3, 0, 4)  # layer, key or value, head, token
        with studio.blended(model, {}):
            expected = model(ids, past_key_values=_cache(columns), attention_mask=torch.ones(3, M + 5)).logits
            text = ids
            for _ in range(3):
                whole = {"past_key_values": _cache(columns), "attention_mask": torch.ones(3, M + text.shape[1])}
                text = torch.cat([text, model(text, **whole).logits[:, -1:].argmax(-1)], dim=1)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(actual, plain, atol=1e-3)
    assert torch.equal(generated, text)


def _cache(columns: torch.Tensor) -> DynamicCache:
    return DynamicCache([(k.expand(3, -1, -1, -1), v.expand(3, -1, -1, -1)) for k, v in columns])


def _generated(model: Any, ids: torch.Tensor) -> torch.Tensor:
    settings = transformers.GenerationConfig(max_new_tokens=3, do_sample=False, pad_token_id=0, eos_token_id=63)
    model.generation_config.eos_token_id = None
    settings.eos_token_id = None
    return model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)


def test_biases_that_are_not_told_to_the_attention_are_refused() -> None:
    model = falcon(alibi=True)
    with pytest.raises(UnsupportedLayer, match="FalconAttention"):
        studio.attach(model, studio.PrefixTuning(tokens=M))
    assert "adapters" not in model._modules
