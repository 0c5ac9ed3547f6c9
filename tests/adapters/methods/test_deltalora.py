"""Delta-LoRA against the paper's own form, in which the weight itself is overwritten, in float64."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import studio
from studio.adapters import DeltaLoRA
from studio.adapters.training import on_step, scratch
from studio.errors import BadConfig
from studio.trainers import train
from studio.trainers.image.diffusion import Diffusion
from tiny import interrupted

LAYERS = {
    "linear": (lambda: nn.Linear(6, 9), lambda: torch.randn(4, 6)),
    "conv": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), lambda: torch.randn(2, 4, 5, 5)),
    "embedding": (lambda: nn.Embedding(7, 5), lambda: torch.randint(0, 7, (3, 4))),
}


@pytest.mark.parametrize("layer", list(LAYERS))
def test_twenty_steps_are_those_of_a_weight_that_is_overwritten(layer):
    torch.manual_seed(0)
    make, inputs = LAYERS[layer]
    model = nn.Sequential(make()).double()
    weight = model[0].weight.detach().clone()
    bias = getattr(model[0], "bias", None)
    studio.attach(model, DeltaLoRA(rank=2, alpha=3, delta_ratio=1.7, delta_start=5, targets=("0",)))
    model.double()
    state = studio.state(model)
    down, up = (state[f"0.{name}"].detach().clone().requires_grad_() for name in ("down", "up"))
    ours = torch.optim.AdamW([state["0.down"], state["0.up"]], lr=0.05)
    plain = torch.optim.AdamW([down, up], lr=0.05)
    scale, ratio, moved = 3 / 2, 1.7, weight.clone()

    def product():
        change = up @ down.flatten(1)
        return change.t() if layer == "embedding" else change.reshape(weight.shape)

    for step in range(1, 21):
        x = inputs()
        x = x.double() if x.is_floating_point() else x
        got = model(x)
        wanted = torch.func.functional_call(
            make().double(), {"weight": moved + scale * product(), **({} if bias is None else {"bias": bias})}, (x,)
        )
        assert (got - wanted).norm() <= 1e-10 * wanted.norm(), step
        got.square().mean().backward()
        wanted.square().mean().backward()
        before = product().detach()
        ours.step()
        plain.step()
        on_step(model, step=step, steps=20)
        if step > 5:
            moved += ratio * scale * (product().detach() - before)
        ours.zero_grad()
        plain.zero_grad()
        assert (state["0.accumulated"] - (moved - weight)).abs().max() <= 1e-10, step
        assert state["0.accumulated"].any() == (step > 5)
    assert torch.equal(model[0].weight, weight), "the base's weight stays"
    assert not state["0.accumulated"].requires_grad


def trained():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 4))
    studio.attach(model, DeltaLoRA(rank=2, targets=("0", "1")))
    with torch.no_grad():
        for tensor in studio.state(model).values():
            tensor.normal_()
    return model


def test_what_is_accumulated_is_baked_and_saved(tmp_path):
    model, x = trained(), torch.randn(3, 6)
    live = model(x)
    studio.bake(model)
    assert (model(x) - live).norm() <= 1e-5 * live.norm()
    studio.unbake(model)
    file = studio.save(model, tmp_path / "a.safetensors")
    assert load_file(file)["0.delta_sum"].shape == (9, 6)
    studio.detach(model)
    studio.load(model, file)
    assert torch.equal(model(x), live)
    assert scratch(model) == {}, "only training keeps the pair of the step before"


def test_impossible_fields_are_refused():
    with pytest.raises(BadConfig, match="delta_start=-1"):
        DeltaLoRA(delta_start=-1)
    with pytest.raises(BadConfig, match="delta_ratio=nan"):
        DeltaLoRA(delta_ratio=float("nan"))
    with pytest.raises(BadConfig, match="no field 'dropout'"):
        from studio.config import build

        build(DeltaLoRA, {"dropout": 0.1})


@pytest.mark.parametrize("ema", [0.0, 0.7])
def test_the_loop_moves_the_weight_and_resumes_bit_for_bit(dreambooth, tmp_path, ema):
    settings = {
        "steps": 6, "batch_size": 2, "quiet": True, "cache": str(tmp_path / "cache"), "checkpoint_every": 2,
        "adapter": DeltaLoRA(rank=2, delta_start=3), "learning_rate": 1e-2, "ema": ema,
    }  # fmt: skip
    whole = train(dreambooth, output=tmp_path / "whole", **settings)
    sums = {key: tensor for key, tensor in load_file(whole.adapter).items() if key.endswith("delta_sum")}
    assert sums and all(tensor.any() for tensor in sums.values())
    early = load_file(whole.folder / "checkpoints" / "step-000002.safetensors")
    assert not any(early[key].any() for key in sums)
    with interrupted(Diffusion, 5):
        train(dreambooth, output=tmp_path / "run", **settings)
    assert train(dreambooth, output=tmp_path / "run", **settings).adapter.read_bytes() == whole.adapter.read_bytes()
