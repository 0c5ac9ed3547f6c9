"""Trained token rows: tied layers, biases, vocabularies, and PEFT's files of them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import studio
import tiny
from studio.errors import BadConfig, DoesNotFit, UnsupportedLayer
from tiny import t5

IDS = torch.tensor([[1, 5, 3, 9, 5, 2]])


def llama(tied: bool = True) -> nn.Module:
    return tiny.llama(num_hidden_layers=1, tie_word_embeddings=tied, pad_token_id=0)


def moved(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for tensor in studio.state(model).values():
            tensor += torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))
    return model


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((got - wanted).norm() / wanted.norm()).item()


def test_a_tied_head_is_adapted_with_the_same_rows() -> None:
    model = llama()
    base = model(IDS).logits
    report = studio.attach(model, studio.TokenEmbedding(tokens=(5, 3), targets=("embed_tokens",)))
    assert report.sites == ("model.embed_tokens", "lm_head") and report.parameters == 2 * 16
    assert report.notes == ()  # nothing parts when it is baked
    assert torch.equal(model(IDS).logits, base)
    rows = studio.state(moved(model))["model.embed_tokens.rows"]
    assert set(studio.state(model)) == {"model.embed_tokens.rows"}
    wanted = llama()
    with torch.no_grad():
        wanted.model.embed_tokens.weight[[5, 3]] = rows  # one Parameter: this is the head too
    live = model(IDS).logits
    assert relative(live, wanted(IDS).logits) <= 1e-6
    live.sum().backward()
    wanted(IDS).logits.sum().backward()
    assert relative(rows.grad, wanted.model.embed_tokens.weight.grad[[5, 3]]) <= 1e-5
    studio.bake(model)
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert relative(model(IDS).logits, live) <= 1e-6
    studio.unbake(model)
    twin = copy.deepcopy(model)
    studio.detach(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight and torch.equal(model(IDS).logits, base)
    assert torch.equal(twin(IDS).logits, live)


def test_naming_both_tied_layers_is_the_same_as_naming_one() -> None:
    one, both = llama(), llama()
    for model, targets in ((one, ("embed_tokens",)), (both, ("lm_head", "embed_tokens"))):
        studio.attach(model, studio.TokenEmbedding(tokens=(5, 3), init="mean", targets=targets))
    assert studio.adapters(one)["default"].parameters == studio.adapters(both)["default"].parameters == 32
    assert relative(moved(both)(IDS).logits, moved(one)(IDS).logits) <= 1e-6


def test_an_untied_head_is_left_alone_unless_it_is_named() -> None:
    model = llama(tied=False)
    report = studio.attach(model, studio.TokenEmbedding(tokens=(5, 3), targets=("embed_tokens",)))
    assert report.sites == ("model.embed_tokens",)


def test_rows_of_an_untied_model_are_refused_on_a_tied_one_where_they_differ(tmp_path) -> None:
    config = studio.TokenEmbedding(tokens=(5, 3), targets=("embed_tokens", "lm_head"))
    model = llama(tied=False)
    studio.attach(model, config)
    file = studio.save(moved(model), tmp_path / "a.safetensors")
    tied = llama()
    with pytest.raises(DoesNotFit, match="is tied to"):
        studio.load(tied, file)
    assert studio.adapters(tied) == {}


def test_a_layer_that_is_only_there_to_hold_the_tied_weight_is_no_error() -> None:
    """T5 keeps its embedding as "shared" and calls the encoder's and the decoder's own, which are tied to it."""
    model = t5()
    studio.attach(model, studio.TokenEmbedding(tokens=(5, 3), targets=("shared",)))
    before = model(input_ids=IDS, decoder_input_ids=IDS).logits
    assert relative(moved(model)(input_ids=IDS, decoder_input_ids=IDS).logits, before) > 1e-3


def test_saved_once_and_loaded_onto_both_layers(tmp_path) -> None:
    model = llama()
    studio.attach(model, studio.TokenEmbedding(tokens=(5, 3), targets=("embed_tokens",)))
    wanted = moved(model)(IDS).logits
    for name in ("a.safetensors", "folder"):
        file = studio.save(model, tmp_path / name)
        assert len(studio.inspect(file).tensors) == 1
        other = llama()
        studio.load(other, file)
        assert torch.equal(other(IDS).logits, wanted)


def test_peft_folders_of_a_tied_model_in_both_directions(tmp_path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.TrainableTokensConfig(token_indices=[5, 3], target_modules=["embed_tokens"])
    theirs = peft.get_peft_model(llama(), config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path / "theirs")
    wanted = theirs(IDS).logits
    ours = llama()
    studio.load(ours, tmp_path / "theirs")
    assert relative(ours(IDS).logits, wanted) <= 1e-5
    again = peft.PeftModel.from_pretrained(llama(), studio.save(ours, tmp_path / "ours", format="peft")).eval()
    assert relative(again(IDS).logits, wanted) <= 1e-5


def test_a_linear_keeps_its_bias() -> None:
    """PEFT 0.21 drops the bias of a Linear with trainable tokens (trainable_tokens/layer.py)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6))
    x, wanted = torch.randn(3, 4), copy.deepcopy(model)
    studio.attach(model, studio.TokenEmbedding(tokens=(5, 0), targets=("0",)))
    with torch.no_grad():
        studio.state(model)["0.rows"].fill_(0.5)
        wanted[0].weight[[5, 0]] = 0.5
    assert torch.allclose(model(x), wanted(x), atol=1e-6)


def test_a_new_word_starts_near_the_mean_of_the_others() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(1000, 8))
    studio.attach(model, studio.TokenEmbedding(tokens=(1, 2), init="mean", targets=("0",)))
    rows, others = studio.state(model)["0.rows"], torch.cat([model[0].weight[:1], model[0].weight[3:]])
    assert not torch.equal(rows[0], rows[1])
    assert ((rows - others.mean(0)) / others.std(0)).abs().max() < 0.05


@pytest.mark.parametrize(
    ("tokens", "error", "says"),
    [
        ((32,), DoesNotFit, "names the token 32, and model.embed_tokens has 32 of them, 0 to 31"),
        ((3, 4, 3), BadConfig, "names the token 3 twice"),
        ((-1,), BadConfig, "none negative"),
        ((), BadConfig, "one or more"),
        ((True,), BadConfig, "whole number"),
    ],
)
def test_tokens_that_cannot_be(tokens: tuple[int, ...], error: type[Exception], says: str) -> None:
    model = llama()
    with pytest.raises(error, match=says):
        studio.attach(model, studio.TokenEmbedding(tokens=tokens, targets=("embed_tokens",)))
    assert studio.adapters(model) == {}


def test_the_forward_makes_no_copy_of_the_embedding() -> None:
    vocabulary, width = 4096, 64
    model = nn.Sequential(nn.Embedding(vocabulary, width), nn.Linear(width, vocabulary, bias=False))
    studio.attach(model, studio.TokenEmbedding(tokens=(7, 9), targets=("0", "1")))
    kept: list[int] = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t)
    with hooks:
        model(torch.arange(8)[None]).sum().backward()
    # the Linear's own weight is kept for the gradient of its input; nothing else comes near it
    assert sorted(kept)[-2] <= 8 * vocabulary < vocabulary * width


@pytest.mark.parametrize("init", ["rows", "mean"])
@pytest.mark.parametrize("layer", [nn.Conv2d(3, 3, 3), nn.Conv1d(3, 3, 3), nn.MultiheadAttention(4, 2)], ids=type)
def test_layers_without_rows_for_tokens_are_refused_whatever_the_start(layer: nn.Module, init: str) -> None:
    with pytest.raises(UnsupportedLayer, match="TokenEmbedding cannot act on 0, which is of kind"):
        studio.attach(nn.Sequential(layer), studio.TokenEmbedding(targets=("0",), tokens=(0, 1), init=init))
