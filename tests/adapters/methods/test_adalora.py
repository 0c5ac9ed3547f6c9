"""AdaLoRA's budget, masks, penalty and files against ``peft``; its training through the loop."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import studio
from studio.adapters import AdaLoRA
from studio.adapters.training import layers, on_step, penalty
from studio.errors import BadConfig, DoesNotFit
from studio.trainers import train
from studio.trainers.image.diffusion import Diffusion
from tiny import interrupted

peft = pytest.importorskip("peft")

# PEFT takes the lists of its own rank_pattern for patterns of its LoRA, and says so
pytestmark = pytest.mark.filterwarnings("ignore:The following rank_pattern keys")

WIDTHS = {"a": (6, 9), "b": (9, 7), "c": (7, 10)}


class Net(nn.Module):
    """Three layers; with ``scored`` it returns a loss, as the models do whose loss PEFT adds its penalty to."""

    def __init__(self, scored: bool = False) -> None:
        super().__init__()
        for name, (inner, outer) in WIDTHS.items():
            self.add_module(name, nn.Linear(inner, outer))
        self.scored = scored

    def forward(self, x):
        y = self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))
        return SimpleNamespace(loss=y.square().mean()) if self.scored else y


def both(*, steps, scored=False, **fields):
    """PEFT's model and ours, with the same base and the same adapter."""
    torch.manual_seed(0)
    base = Net(scored)
    ours = copy.deepcopy(base)
    names = {"full_steps": "tinit", "final_steps": "tfinal", "interval": "deltaT", "rank": "init_r",
             "target_rank": "target_r", "alpha": "lora_alpha"}  # fmt: skip
    given = {names[name]: value for name, value in fields.items()}
    theirs = peft.get_peft_model(base, peft.AdaLoraConfig(target_modules=list(WIDTHS), total_step=steps, **given))
    studio.attach(ours, AdaLoRA(targets=tuple(WIDTHS), **fields))
    with torch.no_grad():
        for name in WIDTHS:
            layer = theirs.base_model.model.get_submodule(name)
            for key, word in (("down", "lora_A"), ("up", "lora_B"), ("values", "lora_E")):
                studio.state(ours)[f"{name}.{key}"].copy_(getattr(layer, word)["default"])
    return theirs, ours


def pairs(theirs, ours):
    """Each trained tensor here with the one there."""
    words = {"down": "lora_A", "up": "lora_B", "values": "lora_E"}
    for key, tensor in studio.state(ours).items():
        path, _, name = key.rpartition(".")
        yield tensor, getattr(theirs.base_model.model.get_submodule(path), words[name])["default"]


@pytest.mark.parametrize(
    "fields",
    [
        {"rank": 6, "target_rank": 2, "full_steps": 8, "final_steps": 15},
        {"rank": 5, "target_rank": 3, "full_steps": 0, "final_steps": 0, "interval": 7},
        {"rank": 4, "target_rank": 1, "full_steps": 20, "final_steps": 10, "interval": 4},
    ],
    ids=["paper", "sparse", "late"],
)
def test_budget_masks_and_values_are_those_of_peft_at_every_step(fields):
    steps = 60
    theirs, ours = both(steps=steps, alpha=6, **fields)
    allocator = theirs.base_model.rankallocator
    adapter = type(next(iter(layers(ours).values())))
    generator = torch.Generator().manual_seed(1)
    budgets = []
    for step in range(1, steps + 1):
        for mine, yours in pairs(theirs, ours):
            gradient = torch.randn(mine.shape, generator=generator)
            for tensor in (mine, yours):
                tensor.grad = gradient.clone()
                with torch.no_grad():
                    tensor -= 0.05 * gradient
        theirs.base_model.update_and_allocate(step)
        on_step(ours, step=step, steps=steps)
        budgets.append(adapter.schedule(layers(ours), steps).budget(step))
        assert budgets[-1] == allocator.budget_schedule(step)[0], step
        for mine, yours in pairs(theirs, ours):
            assert torch.equal(mine == 0, yours == 0), step
            assert (mine - yours).abs().max() <= 1e-6, step
    kept = sum(int((tensor != 0).sum()) for key, tensor in studio.state(ours).items() if key.endswith("values"))
    assert budgets[0] <= 3 * fields["rank"] and budgets[-1] == 3 * fields["target_rank"] == kept
    assert sorted(budgets, reverse=True) == budgets


def test_penalty_is_what_peft_adds_to_the_loss():
    theirs, ours = both(steps=10, scored=True, rank=3)
    x = torch.randn(4, 6)
    bare = theirs.base_model.model(x).loss
    added = theirs.base_model(x).loss - bare  # a PeftModel without a task type calls past it
    ours.scored = False
    assert float(penalty(ours).detach()) == pytest.approx(float(added.detach()), rel=1e-5)
    penalty(ours).backward()
    assert all(tensor.grad is not None for key, tensor in studio.state(ours).items() if not key.endswith("values"))
    studio.detach(ours)
    studio.attach(ours, AdaLoRA(rank=3, targets=("a",), orthogonality=0.0))
    assert penalty(ours) is None


def relative(got, wanted):
    return ((got - wanted).norm() / wanted.norm()).item()


def test_a_pruned_folder_of_theirs_loads_here(tmp_path):
    """Layer ``b`` has lost all its ranks there; PEFT's scale stays that of the rank at the start."""
    theirs, _ = both(steps=40, rank=5, target_rank=2, alpha=7)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    kept = {"a": [True, False, True, True, False], "b": [False] * 5, "c": [True] * 5}
    theirs.peft_config["default"].rank_pattern = {f"{name}.lora_E": mask for name, mask in kept.items()}
    theirs.base_model.rankallocator.mask_using_rank_pattern(
        theirs.base_model.model, {f"{name}.lora_E.default": mask for name, mask in kept.items()}
    )
    theirs.save_pretrained(tmp_path)
    x = torch.randn(3, 6)
    wanted = theirs.eval()(x)
    torch.manual_seed(0)
    base = Net()
    again = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)
    assert relative(again(x), wanted) <= 1e-5, "PEFT reads its own folder"
    report = studio.load(base, tmp_path)
    assert report.ignored == {} and report.notes == () and report.method == "adalora"
    assert relative(base(x), wanted) <= 1e-5
    config = studio.adapters(base)["default"].config
    assert [config.rank_at(name) for name in "abc"] == [3, 1, 5]
    assert config.scale_at("a") == pytest.approx(7 / (5 + 1e-5), rel=1e-9)


def pruned(seed=0, **fields):
    """A model whose adapter has ranks 1, 4 and 2 left."""
    torch.manual_seed(seed)
    base = Net()
    model = copy.deepcopy(base)
    studio.attach(model, AdaLoRA(rank=4, alpha=5, targets=tuple(WIDTHS), **fields))
    with torch.no_grad():
        for tensor in studio.state(model).values():
            tensor.normal_()
        for name, zeros in (("a", [0, 1, 3]), ("c", [1, 2])):
            studio.state(model)[f"{name}.values"][zeros] = 0
    return model, base


@pytest.mark.parametrize("format", ["diffusers", "peft", "kohya"])
def test_a_saved_adapter_has_lost_the_pruned_ranks(tmp_path, format):
    model, base = pruned()
    x = torch.randn(3, 6)
    place = tmp_path / ("a" if format == "peft" else "a.safetensors")
    file = studio.save(model, place, format=format)
    shapes = {key: shape for key, (_, shape) in studio.inspect(file).tensors.items() if "A" in key or "down" in key}
    assert sorted(shape[0] for shape in shapes.values()) == [1, 2, 4]
    report = studio.load(base, file)
    assert report.method == ("lora" if format == "kohya" else "adalora")
    assert relative(base(x), model(x)) <= 1e-6
    second = studio.save(base, place.with_name("b" if format == "peft" else "b.safetensors"), format=format)
    for one, two in zip(*(sorted(f.rglob("*")) if f.is_dir() else [f] for f in (file, second)), strict=True):
        assert one.read_bytes() == two.read_bytes()
    if format == "peft":
        there = peft.PeftModel.from_pretrained(pruned()[1], file).eval()
        assert relative(there(x), model(x)) <= 1e-5


def test_an_untrained_adapter_is_saved_whole(tmp_path):
    torch.manual_seed(0)
    model = Net()
    studio.attach(model, AdaLoRA(rank=4, targets=("a",)))
    file = studio.inspect(studio.save(model, tmp_path / "a.safetensors"))
    assert file.tensors["a.lora_A"] == ("F32", (4, 6))


def test_what_peft_cannot_have_is_refused(tmp_path):
    model = nn.Sequential(nn.Embedding(8, 6), nn.Linear(6, 8))
    studio.attach(model, AdaLoRA(rank=2, targets=("0",)))
    with pytest.raises(DoesNotFit, match="on 0: PEFT's covers Linear, Conv1D and Conv2d layers, no Embedding"):
        studio.save(model, tmp_path / "a", format="peft")
    studio.detach(model)
    studio.attach(model, AdaLoRA(rank=2, alpha=-1, targets=("1",)))
    with pytest.raises(DoesNotFit, match="one scale above 0"):
        studio.save(model, tmp_path / "a", format="peft")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"target_rank": 0}, "target_rank=0"), ({"interval": 0}, "interval=0"), ({"full_steps": -1}, "full_steps=-1"),
        ({"importance_decay": 1.0}, "importance_decay=1"), ({"uncertainty_decay": 0.0}, "uncertainty_decay=0"),
        ({"orthogonality": -0.1}, "orthogonality=-0.1"), ({"interval": None}, "interval must be a whole number"),
    ],
)  # fmt: skip
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(BadConfig, match=message):
        AdaLoRA(**fields)


def test_a_target_above_the_start_and_a_schedule_without_room_are_refused():
    model = Net()
    with pytest.raises(BadConfig, match=r"target_rank=5\) is above the 4 ranks per layer"):
        studio.attach(model, AdaLoRA(rank=4, target_rank=5, targets=tuple(WIDTHS)))
    assert studio.adapters(model) == {}
    studio.attach(model, AdaLoRA(rank=4, full_steps=6, final_steps=4, targets=tuple(WIDTHS)))
    with pytest.raises(BadConfig, match="leaves none of 10 steps"):
        on_step(model, step=0, steps=10)
    on_step(model, step=0, steps=11)


# -- through the loop --------------------------------------------------------------------------------------------------


@pytest.fixture
def settings(tmp_path):
    config = AdaLoRA(rank=4, target_rank=2, full_steps=2, final_steps=3)
    return {
        "steps": 9, "batch_size": 2, "quiet": True, "cache": str(tmp_path / "cache"), "checkpoint_every": 2,
        "adapter": config, "learning_rate": 5e-3, "warmup": 0,
    }  # fmt: skip


def ranks(file):
    """What is left of each layer; one that has lost everything is stored with a value of zero."""
    return [int((values != 0).sum()) for key, values in load_file(file).items() if key.endswith("lora_E")]


@pytest.mark.parametrize("ema", [0.0, 0.8])
def test_the_loop_prunes_to_the_budget_and_resumes_bit_for_bit(dreambooth, settings, tmp_path, ema):
    whole = train(dreambooth, output=tmp_path / "whole", ema=ema, **settings)
    found = ranks(whole.adapter)
    assert sum(found) == 2 * len(found) and len(set(found)) > 1
    with interrupted(Diffusion, 5):
        train(dreambooth, output=tmp_path / "run", ema=ema, **settings)
    resumed = train(dreambooth, output=tmp_path / "run", ema=ema, **settings)
    assert resumed.adapter.read_bytes() == whole.adapter.read_bytes()


def test_a_schedule_that_does_not_fit_is_refused_before_step_1(dreambooth, settings, tmp_path):
    with pytest.raises(BadConfig, match="leaves none of 5 steps"):
        train(dreambooth, output=tmp_path / "run", **{**settings, "steps": 5})
    assert not (tmp_path / "run").exists()
