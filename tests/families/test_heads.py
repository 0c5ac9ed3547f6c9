"""Heads that are made: the same numbers in every type and beside every quantisation, and none that is dead."""

from __future__ import annotations

import pytest
import torch

from studio.families.language import open_language_base
from studio.families.language.heads import cosine_rows

LABELS = ("bad", "good", "soso")


@pytest.mark.parametrize("kind", ["classifier", "token-classifier"])
def test_a_made_head_is_the_formula_in_every_type_and_when_the_rest_is_quantised(tiny_encoder, kind):
    plain = open_language_base(tiny_encoder, kind=kind, labels=LABELS)
    assert plain.made == ("classifier",) and plain.labels == LABELS
    head, wanted = plain.model.classifier.weight, cosine_rows(3, 32, 0.1)
    assert torch.equal(head, wanted) and not plain.model.classifier.bias.any()
    half = open_language_base(tiny_encoder, kind=kind, labels=LABELS, dtype="bf16")
    assert torch.equal(half.model.classifier.weight, wanted.bfloat16())
    packed = open_language_base(tiny_encoder, kind=kind, labels=LABELS, quantize="nf4")
    assert packed.quantized and torch.equal(packed.model.classifier.weight, wanted) and packed.hash == plain.hash


def test_a_norm_in_a_head_lets_through_what_it_is_given(tiny_encoder, tmp_path):
    from transformers import ModernBertConfig, ModernBertModel

    tokenizer = open_language_base(tiny_encoder).tokenizer
    marks = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0)
    ModernBertModel(
        ModernBertConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
            **marks,
        )
    ).save_pretrained(tmp_path)  # fmt: skip
    tokenizer.save_pretrained(tmp_path)
    base = open_language_base(tmp_path, kind="classifier", labels=LABELS)
    assert set(base.made) == {"classifier", "head.dense", "head.norm"}
    with torch.no_grad():
        one, other = base.model(torch.tensor([[5, 6, 7], [8, 9, 10]])).logits
    assert not torch.equal(one, other), "the head tells texts apart"
