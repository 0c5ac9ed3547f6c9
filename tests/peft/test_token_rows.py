"""Trained rows of single tokens: which layer has them, what PEFT's names show of them, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import studio.peft as ours
from studio.peft.tuners.trainable_tokens.layer import TrainableTokensLayer
from studio.peft.utils import TrainableTokensWrapper


class Tied(nn.Module):
    """An embedding, two layers that look like an attention's, and a head that may be tied to the embedding."""

    def __init__(self, tied: bool = True, tells: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.q_proj, self.v_proj = nn.Embedding(12, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 12, bias=False)
        if tied:
            self.head.weight = self.words.weight
        if tells:
            self.get_input_embeddings = self._words  # type: ignore[method-assign]

    def _words(self) -> nn.Module:
        return self.words

    def forward(self, x):
        return self.head(self.v_proj(self.q_proj(self.words(x))))


X = torch.arange(12).view(2, 6)


def beside(tokens, **fields):
    return ours.LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=tokens, **fields)


def test_without_targets_it_is_the_input_embedding():
    model = ours.get_peft_model(Tied(tied=False), ours.TrainableTokensConfig(token_indices=[1, 3]))
    assert isinstance(model.base_model.model.words, TrainableTokensLayer)
    assert model.targeted_module_names == ["words"]


def test_without_targets_and_without_an_embedding_it_is_refused():
    with pytest.raises(ValueError, match="Target modules embed_tokens not found in the base model"):
        ours.get_peft_model(Tied(tells=False), ours.TrainableTokensConfig(token_indices=[1]))


@pytest.mark.parametrize("alone", [True, False])
def test_tied_layers_show_the_same_rows(alone):
    base = Tied()
    own = base.words.weight.detach().clone()
    config = ours.TrainableTokensConfig(target_modules=["words"], token_indices=[3, 1]) if alone else beside([3, 1])
    model = ours.get_peft_model(base, config)
    layers = [model.base_model.model.words, model.base_model.model.head]
    assert all(isinstance(layer, TrainableTokensLayer if alone else TrainableTokensWrapper) for layer in layers)
    words, head = layers if alone else (layer.token_adapter for layer in layers)
    assert words.trainable_tokens_delta is head.trainable_tokens_delta
    assert words.token_indices["default"] == head.token_indices["default"] == [3, 1]
    assert list(words.active_adapters) == ["default"] and not words.merged_adapters
    with torch.no_grad():
        words.trainable_tokens_delta["default"].add_(1.0)
    assert torch.equal(layers[0](torch.tensor([3, 1])), own[[3, 1]] + 1)
    model.merge_adapter()
    assert words.merged_adapters == ["default"]
    assert torch.equal(words.trainable_tokens_original["default"], own[[3, 1]])


def test_layers_of_their_own_weights_have_rows_of_their_own():
    model = ours.get_peft_model(Tied(tied=False), beside({"words": [1, 2], "head": [1, 2]}))
    words, head = model.base_model.model.words.token_adapter, model.base_model.model.head.token_adapter
    assert words.trainable_tokens_delta is not head.trainable_tokens_delta
    assert not hasattr(model.base_model.model.v_proj, "token_adapter")


def test_an_adapter_added_later_stands_in_the_same_table():
    model = ours.get_peft_model(Tied(), beside([1, 2]))
    model.add_adapter("second", beside([4]))
    words, head = model.base_model.model.words.token_adapter, model.base_model.model.head.token_adapter
    assert words.trainable_tokens_delta is head.trainable_tokens_delta
    assert dict(words.token_indices) == {"default": [1, 2], "second": [4]}


@pytest.mark.parametrize("how", ["at once", "one after the other", "unload"])
@pytest.mark.parametrize("alone", [True, False])
def test_rows_of_one_token_are_not_merged_twice(alone, how):
    configs = [
        ours.TrainableTokensConfig(target_modules=["words"], token_indices=tokens) if alone else beside(tokens)
        for tokens in ([0, 1, 2], [2, 3])
    ]
    model = ours.get_peft_model(Tied(), configs[0])
    model.add_adapter("second", configs[1])
    before = model.base_model.model.words.weight.detach().clone()
    with pytest.raises(ValueError, match=r"\[2\] of 'second' .*would result in undefined merging behavior: 'default'"):
        if how == "unload":
            model.merge_and_unload(adapter_names=["default", "second"])
        elif how == "at once":
            model.merge_adapter(["default", "second"])
        else:
            model.merge_adapter(["default"])
            model.merge_adapter(["second"])
    assert model.base_model.model.words.merged_adapters == (["default"] if how == "one after the other" else [])
    if how != "one after the other":
        assert torch.equal(model.base_model.model.words.weight, before)


def test_rows_of_different_tokens_are_merged_together():
    model = ours.get_peft_model(Tied(), beside([0, 1]))
    model.add_adapter("second", beside([2, 3]))
    model.merge_adapter(["default"])
    model.merge_adapter(["second"])
    assert model.base_model.model.words.merged_adapters == ["default", "second"]


REFUSED = {
    "trained whole too": (beside({"words": [1]}, modules_to_save=["words"]), "already marked to be trained fully"),
    "different rows, tied": (
        beside({"words": [1], "head": [2]}, ensure_weight_tying=True),
        "Cannot ensure weight tying when different token indices",
    ),
    "no such layer": (beside({"wrods": [1]}), r"Target modules \{'wrods'\} not found in the base model\..*words"),
    "no such layer, alone": (
        ours.TrainableTokensConfig(target_modules=["wrods"], token_indices=[1]),
        r"Target modules \['wrods'\] not found in the base model\..*words",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_and_leaves_no_trace(name):
    config, said = REFUSED[name]
    model = Tied()
    before = dict(model.state_dict())
    with pytest.raises(ValueError, match=said):
        ours.get_peft_model(model, config)
    assert before.keys() == model.state_dict().keys() and type(model.words) is nn.Embedding


def test_tying_what_is_not_tied_is_said():
    with pytest.warns(UserWarning, match="ensure_weight_tying=True but the model does not have tied weights"):
        ours.get_peft_model(Tied(tied=False), beside([1, 2], ensure_weight_tying=True))
