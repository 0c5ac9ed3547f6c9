"""Classifiers of texts with a soft prompt read the place of the text that they read without one.

The expected numbers come from the definition: the prompt's embeddings before those of one text, and no padding.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from studio.adapters import attach, blended
from studio.adapters.methods import PromptTuning

SIZES = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "pad_token_id": 0,
         "num_labels": 3}  # fmt: skip
MORE: dict[str, dict[str, Any]] = {
    "Llama": {"intermediate_size": 32},
    "Bloom": {},
    "Mpt": {"max_seq_len": 64},
    "GPTNeo": {"attention_types": [[["global"], 2]], "num_layers": 2},
    "CTRL": {"dff": 32},
    "Bert": {"intermediate_size": 32},
}


@pytest.mark.parametrize("side", ["none", "right", "left"])
@pytest.mark.parametrize("kind", list(MORE))
def test_a_classifier_reads_its_place_of_each_row(kind: str, side: str) -> None:
    if (kind, side) == ("Bert", "left"):
        pytest.skip("BERT counts positions from the padding, with a prompt or without")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(**SIZES, **MORE[kind])
        model = getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()
    attach(model, PromptTuning(tokens=4))
    prompt = next(iter(model._modules["adapters"].values())).embedded(1, None).expand(1, -1, -1)
    ids = torch.randint(3, 60, (3, 5), generator=torch.Generator().manual_seed(1))
    lengths = {"none": [5, 5, 5]}.get(side, [5, 3, 4])
    mask = torch.stack([torch.arange(5) < length for length in lengths]).long()
    mask = mask.flip(1) if side == "left" else mask
    found = model(input_ids=ids * mask, attention_mask=mask).logits
    for row in range(3):
        text = ids[row][mask[row].bool()][None]
        with blended(model, {}):
            both = torch.cat([prompt, model.get_input_embeddings()(text)], dim=1)
            wanted = model(inputs_embeds=both).logits[0]
        torch.testing.assert_close(found[row], wanted, rtol=1e-5, atol=1e-5)
