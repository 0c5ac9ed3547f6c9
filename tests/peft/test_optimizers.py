"""PEFT's optimizers against PEFT's own; a model that is wrapped a second time."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import studio.peft as ours
from studio.peft.optimizers import LoraFAOptimizer, create_lorafa_optimizer, create_loraplus_optimizer

SECOND = "You are trying to modify a model with PEFT for a second time"


class Net(nn.Module):
    """An embedding, a norm, two linear layers and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.norm = nn.Embedding(9, 6), nn.LayerNorm(6)
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x):
        return self.second(self.first(self.norm(self.words(x))).tanh())


X = torch.arange(9).view(3, 3)
FIELDS = {
    "pairs": {"target_modules": ["first", "second"]},
    "ranks of their own": {"target_modules": ["first", "second"], "rank_pattern": {"first": 2}},
    "with an embedding": {"target_modules": ["words", "first"]},
    "with a norm": {"target_modules": ["first"], "modules_to_save": ["norm"]},
    "with biases": {"target_modules": ["first"], "bias": "all"},
}


def both(fields):
    """A model here and one of PEFT's with the same numbers."""
    theirs = pytest.importorskip("peft")
    here = ours.get_peft_model(Net(), ours.LoraConfig(r=4, lora_alpha=6, **fields))
    there = theirs.get_peft_model(Net(), theirs.LoraConfig(r=4, lora_alpha=6, **fields))
    theirs.set_peft_model_state_dict(there, ours.get_peft_model_state_dict(here))
    return here, there


def check_steps(here, there, optimizers, share=1e-4):
    for model, optimizer in zip((here, there), optimizers, strict=True):
        for _ in range(3):
            optimizer.zero_grad()
            model(X).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(here(X), there(X), rtol=share, atol=share)


@pytest.mark.parametrize("name", FIELDS)
def test_loraplus_has_pefts_groups_and_steps(name):
    here, there = both(FIELDS[name])
    made = {"optimizer_cls": torch.optim.AdamW, "lr": 0.01, "loraplus_lr_ratio": 4.0, "loraplus_weight_decay": 0.1}
    from peft.optimizers import create_loraplus_optimizer as make_theirs

    optimizers = create_loraplus_optimizer(here, **made), make_theirs(there, **made)
    shapes = [[(group["lr"], group["weight_decay"], sorted(tuple(one.shape) for one in group["params"]))
               for group in optimizer.param_groups] for optimizer in optimizers]  # fmt: skip
    assert shapes[0] == shapes[1]
    check_steps(here, there, optimizers)


@pytest.mark.parametrize("name", [name for name in FIELDS if "embedding" not in name])  # where PEFT inverts zeros
def test_lorafa_steps_as_pefts(name, monkeypatch):
    here, there = both(FIELDS[name])
    from peft.optimizers import lorafa

    monkeypatch.setattr(lorafa, "is_bf16_available", lambda: False)
    made = {"r": 4, "lora_alpha": 6, "lr": 0.01, "weight_decay": 0.1}
    optimizer = create_lorafa_optimizer(here, **made)
    group = optimizer.param_groups[0]
    named = zip(group["names"], group["scaling_factors"], strict=True)
    scales = {name: scale for name, scale in named if scale is not None}
    assert scales and all(
        scale == here.get_submodule(name.partition(".lora_")[0]).scaling["default"] for name, scale in scales.items()
    )
    check_steps(here, there, (optimizer, lorafa.create_lorafa_optimizer(there, **made)))


def test_lorafa_pairs_tensors_by_their_names_and_takes_factors_at_once():
    torch.manual_seed(0)
    down, plain = torch.randn(2, 6), torch.ones(3)
    runs = []
    for change in (False, True):
        up, head = nn.Parameter(torch.zeros(4, 2)), nn.Parameter(plain.clone())
        group = {"params": [down, up, head], "names": ["x.lora_A.a.weight", "x.lora_B.a.weight", "head"], "lr": 1.0}
        optimizer = LoraFAOptimizer([{**group, "scaling_factors": [2.0, 2.0, None]}], eps=1.0, correct_bias=False)
        up.grad, head.grad = torch.ones_like(up), torch.ones_like(head)
        if change:
            optimizer.param_groups[0]["scaling_factors"] = [4.0, 4.0, None]
        optimizer.step()
        runs.append((optimizer.state[up]["exp_avg"], head))
    wanted = 0.1 * torch.ones(4, 2) @ torch.linalg.pinv(down @ down.T + 1e-8 * torch.eye(2))
    torch.testing.assert_close(runs[0][0], wanted / 4)
    torch.testing.assert_close(runs[1][0], wanted / 16)
    torch.testing.assert_close(runs[0][1], plain - 0.1 / (0.001**0.5 + 1.0))  # AdamW's step, not corrected


def test_lorafa_of_old_says_so_once():
    tensor = nn.Parameter(torch.ones(2, 2))
    optimizer = LoraFAOptimizer([{"params": [tensor], "names": ["x"], "scaling_factor": 1.0}], lr=0.1)
    tensor.grad = torch.ones_like(tensor)
    with pytest.warns(FutureWarning, match="`scaling_factor` is deprecated"):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    assert not torch.equal(tensor, torch.ones(2, 2))


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"betas": (1.0, 0.9)}, {"betas": (0.9, -0.1)}, {"eps": -1.0}])
def test_lorafa_refuses_numbers_out_of_bounds(wrong):
    with pytest.raises(ValueError, match="Invalid"):
        LoraFAOptimizer([nn.Parameter(torch.ones(1))], **wrong)


@pytest.mark.parametrize("wrong", [{"r": 3}, {"lora_alpha": 1}, {"use_rslora": True}])
def test_lorafa_refuses_what_the_adapter_is_not(wrong):
    model = ours.get_peft_model(Net(), ours.LoraConfig(r=4, lora_alpha=6, target_modules=["first"]))
    with pytest.raises(ValueError, match="was passed to create_lorafa_optimizer"):
        create_lorafa_optimizer(model, **{"r": 4, "lora_alpha": 6, "lr": 0.1, **wrong})


# -- a second time -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("targets", [["base_model.model.second"], "base_model.model.second", ["first"]])
def test_a_cell_that_is_run_twice_gives_a_new_adapter(wrapped, targets):
    base = Net()
    first = ours.get_peft_model(base, ours.LoraConfig(r=2, target_modules=["first"]))
    if not wrapped:
        targets = ["second"] if "second" in targets[0] or "second" in targets else targets
    with pytest.warns(UserWarning, match=SECOND):
        second = ours.get_peft_model(first if wrapped else base, ours.LoraConfig(r=2, target_modules=targets))
    assert second.get_base_model() is base
    assert second.targeted_module_names == (["second"] if "second" in str(targets) else ["first"])


MADE = {
    "a pair": {"target_modules": ["first"], "init_lora_weights": False},
    "a copy": {"target_modules": ["first"], "modules_to_save": ["second"]},
    "biases": {"target_modules": ["first"], "bias": "all"},
}


@pytest.mark.parametrize("name", MADE)
@pytest.mark.filterwarnings(f"ignore:{SECOND}")
def test_what_has_been_learned_is_not_taken_off(name):
    base = Net()
    model = ours.get_peft_model(base, ours.LoraConfig(r=2, **MADE[name]))
    before = model(X)
    with pytest.raises(ValueError, match="what it has learned would be lost: add_adapter"):
        ours.get_peft_model(base, ours.LoraConfig(r=2, target_modules=["second"]))
    assert torch.equal(model(X), before)
