"""Every method on every sort of language model: attached, trained, saved, loaded, asked again, taken off to the bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import studio
from studio.adapters import METHODS
from studio.adapters.training import on_step
from studio.errors import UnsupportedLayer
from tiny import llama, shaken, t5

IDS = torch.randint(2, 32, (2, 6), generator=torch.Generator().manual_seed(0))
SOUNDS = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(1))
EXPERTS = {"num_experts": 3, "hidden_size": 16, "moe_intermediate_size": 12}
STEPS = 2
FIELDS = {"tokenembedding": {"tokens": tuple(IDS[0, :2].tolist())}}  # tokens that the texts have
# method, model -> why it is refused
REFUSED = dict.fromkeys(
    ((method, "whisper") for method in ("multitaskprompt", "prefixtuning", "prompttuning", "ptuning")),
    "the encoder WhisperEncoder takes no inputs_embeds and attention_mask of tokens, so virtual ones cannot join them",
)


def qwen2_moe() -> nn.Module:
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    sizes = {**EXPERTS, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 20, "intermediate_size": 24}
    torch.manual_seed(0)
    return Qwen2MoeForCausalLM(
        Qwen2MoeConfig(vocab_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, **sizes)
    ).eval()


def whisper() -> nn.Module:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(0)
    return WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=32, num_mel_bins=8, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24, max_source_positions=8,
            max_target_positions=32, pad_token_id=0, bos_token_id=1, eos_token_id=1, decoder_start_token_id=1,
            suppress_tokens=None, begin_suppress_tokens=None,
        )
    ).eval()  # fmt: skip


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**sizes, num_attention_heads=2, max_position_embeddings=32)).eval()


# name -> how it is made, what its loss takes
MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, Tensor]]] = {
    "llama": (llama, {"input_ids": IDS, "labels": IDS}),
    "qwen2-moe": (qwen2_moe, {"input_ids": IDS, "labels": IDS}),
    "t5": (t5, {"input_ids": IDS, "labels": IDS[:, :4].contiguous()}),
    "whisper": (whisper, {"input_features": SOUNDS, "labels": IDS[:, :4].contiguous()}),
    "bert": (bert, {"input_ids": IDS, "labels": torch.tensor([0, 1])}),
}
SAID = {
    "max_new_tokens": 3,
    "min_new_tokens": 3,
    "do_sample": False,
    "output_logits": True,
    "return_dict_in_generate": True,
}
"""How a model is asked: three tokens, with their logits."""


@pytest.fixture(scope="module")
def bases() -> dict[str, nn.Module]:
    return {name: make() for name, (make, _) in MODELS.items()}


def answers(model: Any, name: str) -> Tensor:
    """What it says: the logits along three generated tokens, or those of a classifier."""
    given = {key: value for key, value in MODELS[name][1].items() if key != "labels"}
    with torch.no_grad():
        if name == "bert":
            return model(**given).logits
        return torch.stack(model.generate(**given, **SAID).logits)


def trained(model: Any, name: str) -> list[float]:
    """Two steps of torch's AdamW on the model's own loss."""
    tensors = [tensor for tensor in studio.state(model).values() if tensor.requires_grad]
    optimizer, losses = torch.optim.AdamW(tensors, lr=1e-2), []
    model.train()
    for step in range(1, STEPS + 1):
        loss = model(**MODELS[name][1]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        on_step(model, step=step, steps=STEPS)
        losses.append(float(loss.detach()))
    model.eval()
    return losses


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_it_is_trained_saved_loaded_and_taken_off(
    method: str, name: str, bases: dict[str, nn.Module], tmp_path
) -> None:
    model, config = bases[name], METHODS[method].example(**FIELDS.get(method, {}))
    bare, weights = answers(model, name), {key: tensor.clone() for key, tensor in model.state_dict().items()}
    again = copy.deepcopy(model)
    if (method, name) in REFUSED:
        with pytest.raises(UnsupportedLayer, match=f"^{REFUSED[method, name]}$"):
            studio.attach(model, config)
        assert not studio.adapters(model) and torch.equal(answers(model, name), bare)
        return
    studio.attach(model, config)
    try:
        trained(model, name)
        now = answers(model, name)
        assert not torch.equal(now, bare)
        studio.load(again, studio.save(model, tmp_path / "a.safetensors"))
        torch.testing.assert_close(answers(again, name), now, rtol=1e-5, atol=1e-5)
    finally:
        studio.detach(model)
    assert torch.equal(answers(model, name), bare)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())


def test_experts_in_one_parameter_are_changed_one_by_one() -> None:
    """Each expert's product, computed by itself, on sizes that are all different: experts, width, inner width, rank."""
    rank, alpha = 5, 3
    experts, width, inner = EXPERTS["num_experts"], EXPERTS["hidden_size"], EXPERTS["moe_intermediate_size"]
    assert len({experts, width, inner, 2 * inner, rank}) == 5
    model, changed = qwen2_moe(), qwen2_moe()
    report = studio.attach(model, studio.LoRA(rank=rank, alpha=alpha, targets="experts"))
    shaken(model)
    shapes = {"gate_up_proj": (2 * inner, width), "down_proj": (width, inner)}
    assert [path.rpartition(".")[2] for path in report.sites] == list(shapes)
    for path in report.sites:
        up, down = studio.state(model)[f"{path}.up"].detach(), studio.state(model)[f"{path}.down"].detach()
        rows, columns = shapes[path.rpartition(".")[2]]
        assert up.shape == (experts, rows, rank) and down.shape == (experts, rank, columns)
        for number in range(experts):
            delta = alpha / rank * up[number].double() @ down[number].double()
            with torch.no_grad():
                changed.get_parameter(path)[number] += delta.float()
    torch.testing.assert_close(answers(model, "qwen2-moe"), answers(changed, "qwen2-moe"), rtol=1e-4, atol=1e-5)
    studio.bake(model)
    for path in report.sites:
        torch.testing.assert_close(model.get_parameter(path), changed.get_parameter(path), rtol=1e-5, atol=1e-6)
