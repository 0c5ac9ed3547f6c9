"""Experts by the names that they had before transformers stacked them into one parameter, against PEFT."""

from __future__ import annotations

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

import studio.peft as ours

SIZES = {
    "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_experts_per_tok": 2,
}  # fmt: skip
X = torch.arange(10).view(1, -1)


def qwen(**more):
    torch.manual_seed(0)
    wide = {"intermediate_size": 20, "moe_intermediate_size": 12, "num_experts": 4, "head_dim": 8}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **wide, **more)).eval()


def mixtral():
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(**SIZES, intermediate_size=12, num_local_experts=4)).eval()


NAMED = {
    "a list": (qwen, ["q_proj", "gate_proj", "up_proj", "down_proj"]),
    "experts alone": (qwen, ["gate_proj", "up_proj"]),
    "an expression": (qwen, r".*\.(q_proj|gate_proj|up_proj|down_proj)"),
    "an expression of experts": (qwen, r".*\.(gate_proj|up_proj)$"),
    "mixtral's words": (mixtral, ["w1", "w2", "w3"]),
}


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match any targeted module")  # PEFT's
@pytest.mark.filterwarnings("ignore:The following alpha_pattern keys did not match any targeted module")
@pytest.mark.parametrize("name", NAMED)
def test_the_stacked_parameters_are_trained_and_the_folder_goes_both_ways(name, tmp_path):
    theirs = pytest.importorskip("peft")
    base, targets = NAMED[name]
    fields = {"r": 2, "target_modules": targets, "init_lora_weights": False}
    model = ours.get_peft_model(base(), ours.LoraConfig(**fields)).eval()
    config = model.peft_config["default"]
    assert "gate_up_proj" in config.target_parameters
    assert config.rank_pattern == {r".*\.gate_up_proj": 4} and config.alpha_pattern == {r".*\.gate_up_proj": 16}
    there = theirs.get_peft_model(base(), theirs.LoraConfig(**fields)).eval()
    assert model.get_nb_trainable_parameters() == there.get_nb_trainable_parameters()
    for writer, readers in ((model, (ours, theirs)), (there, (ours,))):
        writer.save_pretrained(tmp_path)
        for reader in readers:
            again = reader.PeftModel.from_pretrained(base(), tmp_path)
            torch.testing.assert_close(again(X).logits, writer(X).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("targets", [["up_proj", "down_proj"], r".*\.(up_proj|down_proj)"])
def test_one_of_two_that_are_stacked_is_refused(targets):
    with pytest.raises(
        ValueError, match="up_proj without also targeting gate_proj because they are fused into gate_up"
    ):
        ours.get_peft_model(qwen(), ours.LoraConfig(target_modules=targets))


def test_layers_that_are_there_keep_their_names():
    model = ours.get_peft_model(
        qwen(mlp_only_layers=[0]), ours.LoraConfig(r=2, target_modules=["gate_proj", "up_proj"])
    )
    assert {name.rpartition(".")[2] for name in model.targeted_module_names} == {"gate_proj", "up_proj"}
    assert model.targeted_parameter_names == []
