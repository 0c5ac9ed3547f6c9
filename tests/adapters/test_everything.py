"""Whatever kind of thing a config names: it is trained, in the status, in the file, and comes back.

One model has one of each kind. Every method is put on all that it covers there, and led through all verbs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import studio
from studio.adapters.contract.adapter import METHODS
from studio.adapters.sites.kinds import kind_of
from studio.adapters.tokens.contract import TokenConfig
from studio.adapters.training import layers, on_step
from studio.errors import UnsupportedLayer
from studio.trainers.loop.optimizer import OPTIMIZERS, Work
from studio.trainers.loop.plan import Plan
from tiny import llama

IDS = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]])


class Box(nn.Module):
    """Parameters of its own: a matrix, a vector, and the matrices of two experts."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(8, 8))
        self.shift = nn.Parameter(torch.randn(8))
        self.experts = nn.Parameter(torch.randn(2, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.matrix + self.shift) @ self.experts.sum(0)


class Everything(nn.Module):
    """One of each kind of layer, norm, parameter and module."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(12, 8)
        self.line = nn.Linear(8, 8)
        self.turned = Conv1D(8, 8)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.grouped = nn.Conv1d(8, 8, 1, groups=2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.groups = nn.GroupNorm(2, 8)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))
        self.box = Box()

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(self.table(ids))
        x = x + self.turned(torch.tanh(self.line(x)))
        x = x + self.groups(self.grouped(torch.tanh(self.conv(x.mT)))).mT
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.box(x + self.block(x))


def model_for(method: str) -> nn.Module:
    if issubclass(METHODS[method], TokenConfig):
        return llama()
    torch.manual_seed(0)
    return Everything()


def call(model: nn.Module) -> Tensor:
    output: Any = model(IDS)
    return output if isinstance(output, Tensor) else output.logits


# kind of thing -> what is there of it
NAMED: dict[str, list[str]] = {}
for _path, _module in Everything().named_modules():
    if _path and kind_of(_module) in ("linear", "conv", "conv1d-gpt2", "embedding", "attention", "norm"):
        NAMED.setdefault(str(kind_of(_module)), []).append(_path)
NAMED["module"] = ["block"]
NAMED["parameter"], NAMED["experts"] = ["box.matrix", "box.shift"], ["box.experts"]

# a vector is a matrix of one column: no blocks, no reflections of several numbers
NOT = {
    **dict.fromkeys(("adalora", "boft", "oft", "hra", "shira", "miss"), {"box.shift"}),
    "bottleneck": {"attention.out_proj"},  # which its attention never calls
}
FIELDS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("deltalora", "dora", "loha", "lora"), {"rank_pattern": {"shift": 1}}),
    "adalora": {"target_rank": METHODS["adalora"].example().rank},  # so that it prunes nothing
    "fourierft": {"frequencies": 6},
    "ia3": {"feedforward": ("line", "grouped", "block.2", "box.matrix")},
}


def config_for(method: str, without: str = "") -> Any:
    config = METHODS[method]
    if issubclass(config, TokenConfig):
        return config.example()
    left = {without, *NOT.get(method, ())}
    chosen = [path for kind in config.adapter.kinds for path in NAMED.get(kind, ()) if path not in left]
    return config.example(**{**FIELDS.get(method, {}), "targets": tuple(f"re:{path}" for path in chosen)})


def attached(method: str, without: str = "") -> tuple[nn.Module, set[str]]:
    """The model with the method on all that it covers, and what that is."""
    model, config = model_for(method), config_for(method, without)
    studio.attach(model, config)
    return model, {pattern.removeprefix("re:") for pattern in config.targets} if config.targets != "model" else {""}


def trained(model: nn.Module, optimizer: str) -> None:
    """Four steps towards random outputs, as the training loop makes them."""
    rates = {"embedding_rate": 1e-2} if optimizer == "lora-plus" else {}
    plan = Plan(steps=4, optimizer=optimizer, weight_decay=0.0, **rates)  # type: ignore[arg-type]
    made = OPTIMIZERS[optimizer](Work(studio.state(model), layers(model), {"": 1e-2}, plan))
    goal = torch.randn(call(model).shape, generator=torch.Generator().manual_seed(3))
    for step in range(1, 5):
        made.zero_grad()
        (call(model) - goal).square().mean().backward()
        made.step()
        on_step(model, step=step, steps=4)


@pytest.mark.parametrize("method", METHODS)
def test_what_is_named_is_in_the_status_and_gets_gradients(method: str) -> None:
    model, named = attached(method)
    info, tensors = studio.adapters(model)["default"], studio.state(model)
    assert named <= set(info.sites) and info.trainable
    wanted = [key for key, tensor in tensors.items() if key.rpartition(".")[2] in info.config.adapter.trained]
    assert all(tensors[key].requires_grad for key in wanted)
    assert studio.trainable(model).trainable == sum(tensors[key].numel() for key in wanted)
    with torch.no_grad():
        for key in wanted:
            tensors[key].add_(0.1 * torch.randn(tensors[key].shape, generator=torch.Generator().manual_seed(len(key))))
    call(model).square().sum().backward()
    assert not [key for key in wanted if tensors[key].grad is None or not tensors[key].grad.any()]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS)
def test_it_moves_is_in_the_file_and_comes_back(method: str, optimizer: str, tmp_path: Path) -> None:
    model, _ = attached(method, "table" if optimizer == "lora-fa" else "")  # see below
    base, start = call(model_for(method).eval()), {key: t.detach().clone() for key, t in studio.state(model).items()}
    try:
        trained(model, optimizer)
    except UnsupportedLayer:
        assert optimizer != "adamw"
        assert all(torch.equal(tensor, start[key]) for key, tensor in studio.state(model).items())
        return
    moved = studio.state(model)
    stayed = [key for key, tensor in moved.items() if tensor.requires_grad and torch.equal(tensor, start[key])]
    assert not stayed
    model.eval()
    wanted, file = call(model), studio.save(model, tmp_path / "a.safetensors")
    again = model_for(method).eval()
    report = studio.load(again, file)
    assert not report.ignored
    assert set(report.sites) == {site for site in studio.adapters(model)["default"].sites if _has(moved, site)}
    torch.testing.assert_close(call(again), wanted, rtol=1e-5, atol=1e-5)
    if method != "qalora":  # which is stored with PEFT's pooling, the difference in ``up``
        came = studio.state(again)
        for key in [key for key, tensor in moved.items() if tensor.requires_grad]:
            torch.testing.assert_close(came[key], moved[key].detach(), msg=lambda text, key=key: f"{key}: {text}")
    _verbs(again, wanted, base)


def _has(tensors: dict[str, Tensor], site: str) -> bool:
    return not site or any(key.rpartition(".")[0] == site for key in tensors)


def _verbs(model: nn.Module, wanted: Tensor, base: Tensor) -> None:
    """Off, baked, given back and off for good."""
    adapter = studio.adapters(model)["default"].config.adapter
    with studio.blended(model, {}):  # a hosted attention does not take torch's fused path
        torch.testing.assert_close(call(model), base, rtol=1e-5, atol=1e-5)
    if adapter.bakes:
        studio.bake(model)
        torch.testing.assert_close(call(model), wanted, rtol=1e-4, atol=1e-4)
        studio.unbake(model)
    torch.testing.assert_close(call(model), wanted, rtol=1e-5, atol=1e-5)
    studio.detach(model)
    torch.testing.assert_close(call(model), base, rtol=0, atol=0)


@pytest.mark.parametrize("method", ["lora", "deltalora"])
def test_a_side_that_is_kept_at_zero_is_refused(method: str) -> None:
    model, _ = attached(method)
    with pytest.raises(UnsupportedLayer, match="that of table is zero, as it starts on an embedding"):
        trained(model, "lora-fa")
    assert studio.state(model)["line.down"].requires_grad


@pytest.mark.parametrize("optimizer", ["adamw", "lora-plus"])
@pytest.mark.parametrize("method", ["lora", "deltalora"])
def test_rows_of_tokens_that_are_not_seen_stay_as_they_are(method: str, optimizer: str) -> None:
    model, ids = model_for(method), torch.arange(8, 12)[None]
    before, seen = model.table(ids), model.table(IDS)  # type: ignore[operator]
    studio.attach(model, METHODS[method].example(targets=("table",)))
    trained(model, optimizer)
    assert torch.equal(model.table(ids), before)  # type: ignore[operator]
    assert not (model.table(IDS) == seen).all(-1).any()  # type: ignore[operator]
