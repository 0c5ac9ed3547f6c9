"""A baked blend that is set aside and put back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import studio
from studio.adapters.folded import folded_bytes, put_back, set_aside
from studio.errors import DoesNotFit

CHANGING = [name for name in studio.METHODS if "linear" in studio.METHODS[name].adapter.kinds]
CHANGING = [name for name in CHANGING if studio.METHODS[name].adapter.bakes]


def net(method: str = "lora") -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    fields = {"feedforward": ("0", "1")} if method == "ia3" else {}
    studio.attach(model, studio.METHODS[method].example(targets=("0", "1"), **fields), name="dog")
    for number, tensor in enumerate(studio.state(model, "dog").values()):
        if tensor.is_floating_point():
            tensor.data += 0.3 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(number))
        tensor.requires_grad_(False)
    return model


@pytest.mark.parametrize("method", CHANGING)
def test_it_comes_back_to_the_bit_and_so_does_the_base(method):
    model, x = net(method), torch.randn(3, 8)
    weights = [layer.weight for layer in model]
    bits = [weight.clone() for weight in weights]
    studio.bake(model, {"dog": 0.7})
    baked = model(x)
    for _ in range(2):
        folded = set_aside(model)
        assert all(layer.weight is weight for layer, weight in zip(model, weights, strict=True))
        assert not studio.adapters(model)["dog"].baked
        assert put_back(model, folded)
        assert torch.equal(model(x), baked) and studio.adapters(model)["dog"].baked
    studio.unbake(model)
    assert all(torch.equal(layer.weight, bit) for layer, bit in zip(model, bits, strict=True))


def test_it_is_not_put_back_where_something_has_changed():
    model = net()
    studio.bake(model)
    folded = set_aside(model)
    with torch.no_grad():
        model[0].weight.mul_(1.5)
    assert not put_back(model, folded)
    studio.bake(model)
    folded = set_aside(model)
    with torch.no_grad():
        studio.state(model, "dog")["0.up"].mul_(2)
    assert not put_back(model, folded)
    studio.bake(model)
    folded = set_aside(model)
    studio.detach(model, "dog")
    assert not put_back(model, folded)


def test_what_is_refused_and_what_it_takes():
    model = net()
    with pytest.raises(DoesNotFit, match="nothing is baked"):
        set_aside(model)
    studio.bake(model)
    folded = set_aside(model)
    studio.bake(model)
    with pytest.raises(DoesNotFit, match="call unbake first"):
        put_back(model, folded)
    assert folded_bytes(model, ["dog"]) == 2 * 64 * 4 and folded_bytes(model, []) == 0
