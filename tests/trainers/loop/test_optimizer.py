"""LoRA+ and LoRA-FA against ``peft``'s optimizers, and through the loop."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import studio
from studio.adapters import IA3, AdaLoRA, DoRA, LoHa, LoRA
from studio.adapters.training import layers
from studio.errors import BadConfig, UnsupportedLayer
from studio.trainers import Plan, train
from studio.trainers.image.diffusion import Diffusion
from studio.trainers.loop.optimizer import OPTIMIZERS, LoRAFA, Work
from tiny import interrupted

peft = pytest.importorskip("peft")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(10, 6)
        self.lin = nn.Linear(6, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, ids):
        return self.head(torch.tanh(self.lin(self.emb(ids))))


NAMES = {"down": "lora_A", "up": "lora_B", "magnitude": "lora_magnitude_vector"}
TARGETS = ("emb", "lin", "head")


def both(config, **theirs):
    """Our model and PEFT's, with the same base and the same adapter, away from its start."""
    torch.manual_seed(0)
    base = Net()
    ours = copy.deepcopy(base)
    studio.attach(ours, config)
    there = peft.get_peft_model(base, peft.LoraConfig(r=config.rank, target_modules=list(config.targets), **theirs))
    with torch.no_grad():
        for key, tensor in studio.state(ours).items():
            tensor.add_(0.1 * torch.randn_like(tensor))
            counterpart(there, key).copy_(tensor)
    return ours, there


def counterpart(there, key):
    """PEFT's parameter of a key of ours."""
    path, _, name = key.rpartition(".")
    layer = there.base_model.model.get_submodule(path)
    if isinstance(layer.get_base_layer(), nn.Embedding):
        return {"down": layer.lora_embedding_A, "up": layer.lora_embedding_B}[name]["default"]
    part = layer.lora_B["default"].bias if name == "bias" else getattr(layer, NAMES[name])["default"]
    return part if isinstance(part, nn.Parameter) else part.weight


def optimizer_for(model, name, **fields):
    work = Work(studio.state(model), layers(model), {"": 1e-2}, Plan(optimizer=name, **fields))
    return OPTIMIZERS[name](work)


@pytest.mark.parametrize(
    ("config", "theirs"),
    [
        (LoRA(rank=2, targets=TARGETS), {}),
        (LoRA(rank=2, targets=("lin", "head"), use_bias=True), {"lora_bias": True}),
        (DoRA(rank=2, targets=("lin", "head")), {"use_dora": True}),
    ],
    ids=["embedding", "bias", "dora"],
)
@pytest.mark.filterwarnings("ignore:.*have invalid shape")
def test_lora_plus_has_the_rates_and_decays_of_peft(config, theirs):
    from peft.optimizers import create_loraplus_optimizer

    ours, there = both(config, **theirs)
    mine = optimizer_for(ours, "lora-plus", rate_ratio=8.0, weight_decay=0.03)
    yours = create_loraplus_optimizer(
        there, torch.optim.AdamW, lr=1e-2, loraplus_lr_ratio=8.0, loraplus_weight_decay=0.03
    )

    def table(optimizer):
        return {
            id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]
        }

    here, over_there = table(mine), table(yours)
    assert len(here) == len(over_there) == len(studio.state(ours))
    for key, tensor in studio.state(ours).items():
        assert here[id(tensor)] == pytest.approx(over_there[id(counterpart(there, key))]), key


@pytest.mark.parametrize(("decay", "stabilized"), [(0.0, False), (0.05, True)])
def test_lora_fa_does_the_steps_of_peft(monkeypatch, decay, stabilized):
    """PEFT computes the direction in bf16 where the machine can; ours has the tensors' own type."""
    import peft.optimizers.lorafa as lorafa

    monkeypatch.setattr(lorafa, "is_bf16_available", lambda: False)
    ours, there = both(
        LoRA(rank=2, alpha=5, rank_stabilized=stabilized, targets=("lin", "head")), lora_alpha=5, use_rslora=stabilized
    )
    mine = optimizer_for(ours, "lora-fa", weight_decay=decay)
    yours = lorafa.create_lorafa_optimizer(there, r=2, lora_alpha=5, lr=1e-2, weight_decay=decay)
    before = {key: tensor.detach().clone() for key, tensor in studio.state(ours).items()}
    ids = torch.arange(10).view(2, 5)
    for step in range(10):
        for model, optimizer in ((ours, mine), (there, yours)):
            optimizer.zero_grad()
            model(ids).square().sum().backward()
            optimizer.step()
        for key, tensor in studio.state(ours).items():
            wanted = counterpart(there, key)
            assert (tensor - wanted).norm() <= 1e-5 * wanted.norm(), (step, key)
            assert torch.equal(tensor, before[key]) == key.endswith("down")
            assert (tensor.grad is None) == key.endswith("down")


def test_lora_fa_moves_the_weight_nearly_as_full_training_would():
    """For a gradient ``g`` of W, ``s · (g Aᵀ s)(A Aᵀ)⁻¹ / s² · A`` is ``g`` on the rows that A spans."""
    torch.manual_seed(0)
    down, up, scale = torch.randn(3, 7), nn.Parameter(torch.zeros(5, 3)), 2.5
    gradient = torch.randn(5, 7)
    up.grad = scale * gradient @ down.t()
    optimizer = LoRAFA([{"params": [up], "lr": 1.0, "rate": 1.0}], [(down, up, scale)])
    moved = scale * optimizer._direction(up) @ down
    onto_rows = down.t() @ torch.linalg.solve(down @ down.t(), down)
    assert torch.allclose(moved, gradient @ onto_rows, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "optimizer", "message"),
    [
        (IA3(targets=("lin",)), "lora-plus", "IA3 at lin has no such pair"),
        (LoHa(rank=2, targets=("lin",)), "lora-plus", "LoHa at lin"),
        (DoRA(rank=2, targets=("lin",)), "lora-fa", "DoRA at lin"),
        (AdaLoRA(rank=2, targets=("lin",)), "lora-fa", "AdaLoRA at lin"),
        (LoRA(rank=2, alpha=0, targets=("lin",)), "lora-fa", "LoRA at lin"),
    ],
)
def test_methods_without_the_pair_are_refused_by_name(config, optimizer, message):
    model = Net()
    studio.attach(model, config)
    with pytest.raises(UnsupportedLayer, match=message):
        optimizer_for(model, optimizer)
    assert all(tensor.requires_grad for tensor in studio.state(model).values())


def test_fields_of_another_optimizer_are_refused():
    with pytest.raises(BadConfig, match="rate_ratio=4.0: rate_ratio must be left out: it is of optimizer='lora-plus'"):
        Plan(rate_ratio=4)
    with pytest.raises(BadConfig, match="embedding_rate=0.1"):
        Plan(optimizer="lora-fa", embedding_rate=0.1)
    with pytest.raises(BadConfig, match="rate_ratio must be a finite number above 0"):
        Plan(optimizer="lora-plus", rate_ratio=0)
    with pytest.raises(BadConfig, match="one of 'adamw', 'lora-plus', 'lora-fa'"):
        Plan(optimizer="sgd")


# -- through the loop --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["lora-plus", "lora-fa"])
def test_a_run_resumes_bit_for_bit(dreambooth, tmp_path, optimizer):
    settings = {
        "steps": 7, "batch_size": 2, "quiet": True, "cache": str(tmp_path / "cache"), "checkpoint_every": 2,
        "adapter": LoRA(rank=2), "learning_rate": 1e-3, "optimizer": optimizer, "grow": {3: 4},
    }  # fmt: skip
    whole = train(dreambooth, output=tmp_path / "whole", **settings)
    assert (
        train(dreambooth, output=tmp_path / "plain", **{**settings, "optimizer": "adamw"}).losses[1:]
        != whole.losses[1:]
    )
    with interrupted(Diffusion, 5):
        train(dreambooth, output=tmp_path / "run", **settings)
    assert train(dreambooth, output=tmp_path / "run", **settings).adapter.read_bytes() == whole.adapter.read_bytes()
    assert f'optimizer = "{optimizer}"' in (whole.folder / "run.toml").read_text()


def test_lora_fa_keeps_no_input_for_the_backward_pass():
    """What is kept of a layer's input is ``down · x``, 2 numbers in the place of 256."""
    kept = {}
    for name in ("adamw", "lora-fa"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(256, 256))
        studio.attach(model, LoRA(rank=2, targets=("0",)))
        optimizer_for(model, name)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t) or t, lambda t: t):
            model(torch.randn(64, 256))
        kept[name] = sum(t.numel() for t in saved if t.shape[0] == 64)
    assert kept == {"adamw": 64 * 258, "lora-fa": 64 * 2}
