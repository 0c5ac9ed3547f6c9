"""Every method on layers that are kept in few bits, in every way to quantise.

The reference is torch's Linear with the unpacked weight and the same adapter.
"""

from __future__ import annotations

import copy
import io
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import studio
from packings import CHEAP, dense, packed_bytes, quantized
from quantized_page import PACKED, PAGE, on_linear, written
from studio.adapters import METHODS, attach, bake, detach, state, unbake
from studio.quantization import BACKENDS

X = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(2))
TARGET = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(3))

ON_LINEAR = on_linear()
USUAL = ("lora", "dora", "oft", "ia3", "qalora")
"""Of each sort one: a pair, one that needs the weight, one of inputs, one of outputs, one of groups."""


def cells(backends=tuple(BACKENDS), methods=ON_LINEAR) -> list:
    """All pairs; those that are not looked at every time are slow."""
    return [
        pytest.param(name, method, marks=() if name in CHEAP and method in USUAL else pytest.mark.slow)
        for name in backends
        for method in methods
    ]


def shake(model: nn.Module, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in state(model).values():
            if tensor.requires_grad:
                tensor += 0.1 * torch.randn(tensor.shape, generator=generator).to(tensor)


def relative(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).detach().norm() / wanted.detach().norm())


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Of all trained tensors, and of the input."""
    x = x.clone().requires_grad_()
    for tensor in state(model).values():
        tensor.grad = None
    (model(x) * TARGET).sum().backward()
    found = {key: tensor.grad.clone() for key, tensor in state(model).items() if tensor.grad is not None}
    assert x.grad is not None
    return {**found, "input": x.grad}


def check_gradients(model: nn.Module, plain: nn.Module) -> None:
    """They are those of the reference, and an evaluation between changes none."""
    live, first, wanted = model(X), gradients(model, X), gradients(plain, X)
    assert first.keys() == wanted.keys()
    for key in first:
        assert relative(first[key], wanted[key]) <= 1e-4, key
    model.eval()
    with torch.no_grad():
        assert relative(model(X), live) <= 1e-5
    model.train()
    again = gradients(model, X)
    assert all(torch.equal(first[key], again[key]) for key in first)


def train_two_steps(*models: nn.Module) -> None:
    for one in models:
        optimizer = torch.optim.SGD([t for t in state(one).values() if t.requires_grad], lr=1e-3)
        for _ in range(2):
            optimizer.zero_grad()
            nn.functional.mse_loss(one(X), TARGET).backward()
            optimizer.step()


@pytest.mark.parametrize(("name", "method"), cells())
def test_every_method_acts_as_on_the_unpacked_weight(name: str, method: str, tmp_path: Path) -> None:
    config = METHODS[method].example(targets=("0", "2"))
    model = quantized(name)
    plain, before = dense(model), packed_bytes(model)
    for one in (model, plain):
        attach(one, config)
        shake(one)
    live = model(X)
    assert relative(live, plain(X)) <= 1e-5 and relative(live, dense(model)(X)) > 1e-3
    check_gradients(model, plain)
    train_two_steps(model, plain)
    trained = model(X)
    assert relative(trained, plain(X)) <= 1e-4 and not torch.equal(trained, live)
    studio.save(model, tmp_path / "a.safetensors")
    if METHODS[method].adapter.bakes:
        bake(model, {"default": 0.7})
        bake(plain, {"default": 0.7})
        assert relative(model(X), plain(X)) <= 1e-4
        unbake(model)
        assert torch.equal(model(X), trained)
    detach(model)
    after = packed_bytes(model)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    studio.load(model, tmp_path / "a.safetensors", name="default")
    assert relative(model(X), trained) <= 1e-6


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in CHEAP else pytest.mark.slow) for n in BACKENDS])
def test_baking_into_the_packed_weight_says_how_far_it_is_off(name: str) -> None:
    model = quantized(name)
    plain, before = dense(model), packed_bytes(model)
    for one in (model, plain):
        attach(one, studio.LoRA(rank=4, targets=("0", "2")))
        shake(one)
    live = model(X)
    bake(plain)
    report = bake(model, requantize=True)
    after = packed_bytes(model)
    assert report.sites == ["0", "2"] and {key: len(part) for key, part in after.items()} == {
        key: len(part) for key, part in before.items()
    }
    mine = torch.cat([dense(model)[index].weight.flatten() for index in (0, 2)])
    wanted = torch.cat([plain[index].weight.flatten() for index in (0, 2)])
    assert report.error == pytest.approx(relative(mine, wanted), rel=1e-4)
    fresh = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 32, bias=False))
    with torch.no_grad():
        for index in (0, 2):
            fresh[index].weight.copy_(plain[index].weight)
    assert report.error == pytest.approx(studio.quantize(fresh, name).error, rel=0.02)
    assert relative(model(X), live) < 4 * report.error + 0.01
    unbake(model)
    assert torch.equal(model(X), live)
    now = packed_bytes(model)
    assert all(torch.equal(before[key], now[key]) for key in before)


def test_nothing_quantised_cannot_be_quantised_anew() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    attach(model, studio.LoRA(rank=2, targets=("0",)))
    with pytest.raises(studio.errors.DoesNotFit, match="nothing to quantise anew"):
        bake(model, requantize=True)
    assert studio.adapters(model)["default"].baked is False


@pytest.mark.parametrize("name", ["grid4", "fp8", "nf4", "int8"])  # the tensors of others cannot be copied at all
def test_a_model_with_adapters_is_copied_and_pickled(name: str) -> None:
    model = quantized(name)
    attach(model, studio.LoRA(rank=2, targets=("0",)))
    shake(model)
    assert torch.equal(copy.deepcopy(model)(X), model(X))
    if name != "nf4":  # bitsandbytes' own parameter is not the same after pickling
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        assert torch.equal(torch.load(buffer, weights_only=False)(X), model(X))


def test_the_page_has_every_way_to_quantise_and_every_method() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert written(page) == page, "python tests/support/quantized_page.py writes it"
    assert {type(BACKENDS[name].packing) for name in PACKED.values()} == {
        type(one.packing) for one in BACKENDS.values()
    }
