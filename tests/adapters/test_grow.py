"""Rank growth: the same function at a higher rank, as a verb and between the stages of a training."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import studio
from studio.adapters import AdaLoRA, DeltaLoRA, DoRA, LoKr, LoRA
from studio.commands.settings import gather
from studio.config import build, plain
from studio.errors import BadConfig, DoesNotFit, UnknownName, UnsupportedLayer
from studio.trainers import DreamBooth, Plan, train
from studio.trainers.image.diffusion import Diffusion
from studio.trainers.loop.average import Average
from studio.trainers.loop.optimizer import adamw, hand_on
from tiny import interrupted

CONFIGS = {
    "lora": LoRA(rank=2),
    "alpha": LoRA(rank=2, alpha=3.0, dropout=0.2),
    "stabilized": LoRA(rank=2, alpha=3.0, rank_stabilized=True),
    "bias": LoRA(rank=2, alpha=1.5, use_bias=True, init="gaussian"),
    "pissa": LoRA(rank=2, init="pissa"),
    "orthogonal": LoRA(rank=2, init="orthogonal"),
    "pattern": LoRA(rank=2, rank_pattern={"line": 6}, alpha_pattern={"conv": 5.0}),
    "dora": DoRA(rank=2, alpha=3.0),
    "adalora": AdaLoRA(rank=2, alpha=3.0),
}


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.line = nn.Linear(8, 9)
        self.head = nn.Linear(9, 7)

    def forward(self, x):
        return self.head(torch.tanh(self.line(self.conv(x).mean((2, 3)))))


def made(config):
    torch.manual_seed(0)
    model = Net().eval()
    studio.attach(model, dataclasses.replace(config, targets=("conv", "line", "head")), name="dog")
    with torch.no_grad():
        for tensor in studio.state(model, "dog").values():
            if tensor.requires_grad:
                tensor += 0.3 * torch.randn_like(tensor)
    return model


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_function_stays_and_the_new_ranks_are_trained(config, tmp_path):
    model, x = made(config), torch.randn(4, 3, 5, 5)
    before, kept = model(x), {key: t.detach().clone() for key, t in studio.state(model, "dog").items()}
    modules = {path: id(module) for path, module in model.named_modules()}
    report = studio.grow(model, "dog", 5)
    assert (model(x) - before).norm() <= 1e-6 * before.norm()
    assert report.sites == tuple(path for path in ("conv", "line", "head") if config.rank_pattern.get(path, 2) < 5)
    tensors, grown = studio.state(model, "dog"), studio.adapters(model)["dog"].config
    assert report.parameters == sum(t.numel() for t in tensors.values() if t.requires_grad)
    assert {path: id(module) for path, module in model.named_modules()} == modules, "hooks of others stay"
    for path in ("conv", "line", "head"):
        rank = max(5, config.rank_at(path))
        assert tensors[f"{path}.down"].shape[0] == tensors[f"{path}.up"].shape[1] == rank == grown.rank_at(path)
        assert grown.scale_at(path) == pytest.approx(config.scale_at(path), rel=1e-12)
        old = kept[f"{path}.down"]
        assert torch.equal(tensors[f"{path}.down"][: len(old)], old)
    model(x).sum().backward()
    moving = "values" if "conv.values" in tensors else "up"
    for path in report.sites:
        gradient = tensors[f"{path}.{moving}"].grad
        new = gradient[2:] if moving == "values" else gradient[:, 2:]
        assert new.abs().sum() > 0, "the new ranks have a gradient from the first step on"
    file = studio.save(model, tmp_path / "a.safetensors", name="dog")
    studio.detach(model)
    studio.load(model, file)
    assert (model(x) - before).norm() <= 1e-6 * before.norm()


def test_a_seed_decides_what_is_drawn():
    one, two, other = made(CONFIGS["lora"]), made(CONFIGS["lora"]), made(CONFIGS["lora"])
    for model, seed in ((one, 0), (two, 0), (other, 1)):
        studio.grow(model, "dog", 4, seed=seed)
    downs = [studio.state(model, "dog")["head.down"] for model in (one, two, other)]
    assert torch.equal(downs[0], downs[1]) and not torch.equal(downs[0], downs[2])


@pytest.mark.parametrize(
    ("config", "rank", "error", "message"),
    [
        (LoRA(rank=2), 2, BadConfig, "no layer of 'dog' has a rank below 2"),
        (LoRA(rank=2), 8, BadConfig, r"rank=8\) is larger than the layer head"),
        (LoRA(rank=2), 0, BadConfig, "a rank is a whole number"),
        (LoKr(rank=1), 4, UnsupportedLayer, "LoKr cannot grow"),
        (DeltaLoRA(rank=2), 4, UnsupportedLayer, "DeltaLoRA cannot grow"),
    ],
)
def test_what_cannot_grow_is_refused_and_stays_as_it_was(config, rank, error, message):
    model = made(config)
    before = {key: id(tensor) for key, tensor in studio.state(model, "dog").items()}
    with pytest.raises(error, match=message):
        studio.grow(model, "dog", rank)
    assert {key: id(tensor) for key, tensor in studio.state(model, "dog").items()} == before
    assert studio.adapters(model)["dog"].config.rank == config.rank


def test_unknown_and_baked_adapters_are_refused():
    model = made(LoRA(rank=2))
    with pytest.raises(UnknownName, match="did you mean 'dog'"):
        studio.grow(model, "dogs", 4)
    studio.bake(model)
    with pytest.raises(DoesNotFit, match="unbake"):
        studio.grow(model, "dog", 4)


def test_a_frozen_adapter_stays_frozen_and_two_stay_apart():
    model, x = made(LoRA(rank=2)), torch.randn(2, 3, 5, 5)
    for tensor in studio.state(model, "dog").values():
        tensor.requires_grad_(False)
    studio.attach(model, LoRA(rank=3, targets=("head",)), name="ink")
    before = model(x)
    studio.grow(model, "dog", 4)
    assert (model(x) - before).norm() <= 1e-6 * before.norm()
    assert not any(tensor.requires_grad for tensor in studio.state(model, "dog").values())
    assert studio.state(model, "ink")["head.down"].shape[0] == 3


def test_moments_and_averages_are_kept_and_new_ones_are_zero():
    model, x = made(LoRA(rank=2)), torch.randn(4, 3, 5, 5)
    tensors = studio.state(model, "dog")
    old, average = adamw(tensors, {"": 1e-2}), Average(tensors, 0.5)
    for step in range(1, 3):
        model(x).square().mean().backward()
        old.step()
        average.update(step)
    studio.grow(model, "dog", 5)
    grown = studio.state(model, "dog")
    new = adamw(grown, {"": 1e-2})
    hand_on(old.state_dict(), new)
    for key, tensor in grown.items():
        rows = (slice(2, None),) if key.endswith("down") else (slice(None), slice(2, None))
        ours, before = new.state[tensor], old.state[tensors[key]]
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(ours[name][tuple(map(slice, tensors[key].shape))], before[name])
            assert not ours[name][rows].any()
        assert ours["step"] == 2
        assert torch.equal(average.grown(grown).tensors[key][rows], tensor[rows])


# -- stages of a training ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"grow": {"2": 4, "4": 4}}, "the ranks rise"),
        ({"grow": {"two": 4}}, "whole numbers"),
        ({"grow": {0: 4}}, "whole numbers"),
        ({"grow": {6: 4}, "steps": 6}, "before the last one, 6"),
        ({"grow": {"2": 4.5}}, "a whole number"),
    ],
)
def test_impossible_stages_are_refused(fields, message):
    with pytest.raises(BadConfig, match=message):
        Plan(**fields)


@pytest.mark.parametrize(
    "words", [["grow.200=8", "grow.400=16"], ["grow={200 = 8, 400 = 16}"], ["training.grow.200=8", "grow.400=16"]]
)
def test_stages_from_the_command_line(words):
    settings = gather(DreamBooth, config=None, options={}, words=[*words, "optimizer=lora-plus", "rate_ratio=4"])
    plan = settings.make_plan()
    assert plan.stages == {200: 8, 400: 16} and (plan.optimizer, plan.rate_ratio) == ("lora-plus", 4.0)
    assert build(Plan, plain(plan)) == plan


@pytest.fixture
def settings(tmp_path):
    return {
        "steps": 8, "batch_size": 2, "quiet": True, "cache": str(tmp_path / "cache"), "checkpoint_every": 2,
        "adapter": LoRA(rank=1, alpha=2.0, dropout=0.1), "learning_rate": 1e-2, "ema": 0.5, "grow": {4: 2, 6: 4},
    }  # fmt: skip


def rank_of(file):
    return {tensor.shape[0] for key, tensor in load_file(file).items() if key.endswith("lora_A.weight")}


@pytest.mark.parametrize("step", [4, 5, 7])
def test_a_run_in_stages_resumes_bit_for_bit(dreambooth, settings, tmp_path, step):
    whole = train(dreambooth, output=tmp_path / "whole", **settings)
    files = [whole.folder / "checkpoints" / f"step-{at:06d}.safetensors" for at in (2, 4, 6)]
    assert [rank_of(file) for file in (*files, whole.adapter)] == [{1}, {2}, {4}, {4}]
    with interrupted(Diffusion, step):
        train(dreambooth, output=tmp_path / "run", **settings)
    resumed = train(dreambooth, output=tmp_path / "run", **settings)
    assert resumed.adapter.read_bytes() == whole.adapter.read_bytes() and resumed.losses == whole.losses


def test_growing_changes_no_loss_until_the_new_ranks_have_moved(dreambooth, settings, tmp_path):
    plain = {**settings, "adapter": LoRA(rank=1, alpha=2.0), "ema": 0.0}
    grown = train(dreambooth, output=tmp_path / "a", **plain)
    still = train(dreambooth, output=tmp_path / "b", **{**plain, "grow": None})
    assert grown.losses[:4] == still.losses[:4]
    assert grown.losses[4] == pytest.approx(still.losses[4], rel=1e-5)
    assert grown.losses[7] != still.losses[7]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"adapter": AdaLoRA(rank=3)}, DoesNotFit, "AdaLoRA decides about its ranks itself"),
        ({"adapter": LoKr(rank=1)}, UnsupportedLayer, "LoKr cannot grow"),
        ({"grow": {4: 1}}, BadConfig, "has a rank below 1"),
        ({"grow": {4: 2, 5: 99}}, BadConfig, "rank=99"),
        ({"grow": {9: 2}}, BadConfig, "before the last one, 8"),
    ],
)
def test_stages_that_cannot_be_are_refused_before_step_1(dreambooth, settings, tmp_path, change, error, message):
    with pytest.raises(error, match=message):
        train(dreambooth, output=tmp_path / "run", **{**settings, **change})
    assert not (tmp_path / "run").exists()
