"""What a config names is trainable, gets a gradient, moves, is in the status, is in the file and comes back."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from studio import peft
from studio.peft.optimizers import create_lorafa_optimizer, create_loraplus_optimizer

IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 1]])


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(2, 6, 6) / 3)

    def forward(self, x):
        return x + torch.einsum("bsi,eio->bso", x, self.w).tanh()


class Gain(nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(6, 6) / 3)

    def forward(self, x):
        return x @ self.matrix


class Net(nn.Module):
    """One of each kind of thing that a config can name; the last layer is read, not called."""

    def __init__(self):
        super().__init__()
        self.emb, self.lin, self.ff = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.conv, self.ex, self.gain = nn.Conv1d(6, 6, 1), Experts(), Gain()
        self.pool, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, ids):
        x = self.ff(self.lin(self.emb(ids)).tanh())
        x = self.gain(self.ex(self.conv(x.mT).mT))
        return F.linear(self.pool(x).tanh(), self.head.weight, self.head.bias)


def net():
    torch.manual_seed(0)
    return Net().eval()


def lora(**fields):
    return peft.LoraConfig(r=2, **fields)


def ia3(**fields):
    return peft.IA3Config(target_modules=["lin", "ff"], **fields)


PAIR = ("lora_A", "lora_B")
# what a config is, and the places of the model that it names: place -> what trained names there have in them
CASES = {
    "layer": (lambda: lora(target_modules=["lin"]), {"lin": PAIR}),
    "convolution": (lambda: lora(target_modules=["conv"]), {"conv": PAIR}),
    "embedding": (lambda: lora(target_modules=["emb"]), {"emb": ("lora_embedding_A", "lora_embedding_B")}),
    "parameter": (lambda: lora(target_modules=[], target_parameters=["gain.matrix"]), {"gain": PAIR}),
    "experts": (lambda: lora(target_modules=[], target_parameters=["ex.w"]), {"ex": PAIR}),
    "layers and parameters": (
        lambda: lora(target_modules=["lin", "ff"], target_parameters=["ex.w", "gain.matrix"]),
        {"lin": PAIR, "ff": PAIR, "ex": PAIR, "gain": PAIR},
    ),
    "saved module": (lambda: lora(target_modules=["lin"], modules_to_save=["pool"]), {"lin": PAIR, "pool": ("pool",)}),
    "saved module that is read": (lambda: lora(target_modules=["lin"], modules_to_save=["head"]), {"head": ("head",)}),
    "tokens": (lambda: lora(target_modules=["lin"], trainable_token_indices={"emb": [1, 2]}), {"emb": ("tokens",)}),
    "tokens and a saved module": (
        lambda: lora(target_modules=["lin"], modules_to_save=["head"], trainable_token_indices={"emb": [1]}),
        {"lin": PAIR, "emb": ("tokens",), "head": ("head",)},
    ),
    "biases of the layers": (lambda: lora(target_modules=["lin"], bias="lora_only"), {"lin": (*PAIR, "bias")}),
    "all biases": (lambda: lora(target_modules=["lin"], bias="all"), {"lin": (*PAIR, "bias"), "pool": ("bias",)}),
    "a bias of its own": (lambda: lora(target_modules=["lin"], lora_bias=True), {"lin": ("lora_B.default.bias",)}),
    "dora": (lambda: lora(target_modules=["lin"], use_dora=True), {"lin": (*PAIR, "lora_magnitude_vector")}),
    "inputs": (lambda: ia3(feedforward_modules=["ff"]), {"lin": ("ia3_l",), "ff": ("ia3_l",)}),
    "inputs and a saved module": (
        lambda: ia3(feedforward_modules=["ff"], modules_to_save=["head"]),
        {"ff": ("ia3_l",), "head": ("head",)},
    ),
    "only tokens": (
        lambda: peft.TrainableTokensConfig(token_indices=[1, 3], target_modules=["emb"]), {"emb": ("trainable_tokens",)}
    ),
}  # fmt: skip
CASE = pytest.mark.parametrize("make, places", CASES.values(), ids=CASES)


def made(make):
    torch.manual_seed(1)
    return peft.get_peft_model(net(), make()).train()


def trained(model):
    return {name: one for name, one in model.named_parameters() if one.requires_grad}


def at(names, place, word):
    """The names of a place that have a word in them."""
    return [name for name in names if f".{place}." in name and word in name]


def moved(model, optimizer):
    """The names of what three steps of an optimizer move."""
    before = {name: one.detach().clone() for name, one in trained(model).items()}
    for _ in range(3):
        model(IDS).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name for name, one in trained(model).items() if not torch.equal(one, before[name])}


@CASE
def test_it_is_trainable_and_gets_a_gradient(make, places):
    model = made(make)
    names = trained(model)
    for place, words in places.items():
        for word in words:
            assert at(names, place, word), (place, word, sorted(names))
    with torch.no_grad():
        for one in names.values():
            one.add_(0.1 * torch.randn_like(one))  # away from a start at which a factor is zero
    model(IDS).square().mean().backward()
    assert [name for name, one in names.items() if one.grad is None or not one.grad.any()] == []
    assert model.get_nb_trainable_parameters()[0] == sum(one.numel() for one in names.values())


OPTIMIZERS = {
    "adamw": lambda model: torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.05),
    "lora+": lambda model: create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=0.05, loraplus_lr_ratio=2.0, loraplus_lr_embedding=0.05
    ),
    "lora-fa": lambda model: create_lorafa_optimizer(model, r=2, lora_alpha=8, lr=0.05),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@CASE
def test_it_moves_under_each_optimizer(make, places, optimizer):
    model = made(make)
    if optimizer == "lora-fa" and (not isinstance(make(), peft.LoraConfig) or make().target_parameters):
        pytest.skip("LoRA-FA is for low-rank pairs of layers")
    found = OPTIMIZERS[optimizer](model)
    assert moved(model, found) == set(trained(model))
    if optimizer == "lora-fa":
        assert not [name for name in trained(model) if "lora_A" in name]


@CASE
def test_it_is_in_the_status(make, places):
    model = made(make)
    status = {one.name.removeprefix("model."): one for one in model.get_layer_status()}
    for place in (place for place, words in places.items() if words != ("bias",)):
        here = [one for name, one in status.items() if name == place or name.startswith(place + ".")]
        assert here and all(one.available_adapters == ["default"] for one in here)
        assert all(one.requires_grad == {"default": True} and one.enabled for one in here)
    whole = model.get_model_status()
    assert whole.available_adapters == whole.active_adapters == ["default"] and whole.enabled is True
    assert whole.trainable_params == sum(one.numel() for one in trained(model).values())
    with model.disable_adapter():
        assert model.get_model_status().enabled is False


def shaken(model):
    torch.manual_seed(2)
    with torch.no_grad():
        for one in trained(model).values():
            one.add_(0.3 * torch.randn_like(one))
    return model.eval()


@CASE
def test_it_is_in_the_file_and_comes_back(make, places, tmp_path):
    model = shaken(made(make))
    model.save_pretrained(tmp_path)
    keys = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(one.numel() for one in keys.values()) >= sum(one.numel() for one in trained(model).values())
    want = model(IDS)
    assert not torch.allclose(want, net()(IDS), atol=1e-3)
    assert torch.equal(peft.PeftModel.from_pretrained(net(), tmp_path)(IDS), want)
    second = made(make)
    second.load_adapter(tmp_path, "default", is_trainable=True)  # which is there: it is filled
    assert torch.equal(second.eval()(IDS), want) and trained(second).keys() == trained(model).keys()


@CASE
def test_it_is_read_by_peft(make, places, tmp_path):
    theirs = pytest.importorskip("peft")
    model = shaken(made(make))
    model.save_pretrained(tmp_path)
    again = theirs.PeftModel.from_pretrained(net(), tmp_path)
    assert torch.allclose(again(IDS), model(IDS), atol=1e-5)


@CASE
def test_off_is_the_base_and_a_copy_is_the_same(make, places):
    model = shaken(made(make))
    want = model(IDS)
    with model.disable_adapter():
        assert torch.equal(model(IDS), net()(IDS))
    assert torch.equal(copy.deepcopy(model)(IDS), want)
    assert torch.allclose(model.merge_and_unload()(IDS), want, atol=1e-5)


@CASE
def test_unloading_gives_the_base_back(make, places):
    model = shaken(made(make))
    base, plain = model.unload(), net()
    assert {name: type(one) for name, one in base.named_modules()} == {
        name: type(one) for name, one in plain.named_modules()
    }
    assert all(torch.equal(one, plain.state_dict()[name]) for name, one in base.state_dict().items())
    assert base.state_dict().keys() == plain.state_dict().keys()
