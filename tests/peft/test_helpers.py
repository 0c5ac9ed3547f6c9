"""``peft.helpers`` and ``init_empty_weights``: condition numbers, modules without memory, scales, caching of DoRA."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import studio.peft as ours
from studio.peft.helpers import DoraCaching, KappaTuneSelector, find_kappa_target_modules, rescale_adapter_scale
from studio.peft.utils.integrations import init_empty_weights, skip_init_on_device


class Layers(nn.Module):
    """Layers with the condition numbers 8, 2 and 4, a small convolution, and two experts of 3 and 5."""

    def __init__(self) -> None:
        super().__init__()
        for name, number in {"first": 8.0, "second": 2.0, "third": 4.0}.items():
            layer = nn.Linear(3, 3, bias=False)
            layer.weight.data = torch.diag(torch.tensor([number, 1.0, 1.0]))
            setattr(self, name, layer)
        self.conv = nn.Conv2d(1, 1, 1)
        self.experts = nn.Module()
        self.experts.down_proj = nn.Parameter(torch.stack([torch.diag(torch.tensor([one, 1.0])) for one in (3.0, 5.0)]))
        self.experts.up_proj = nn.Parameter(torch.eye(2).repeat(2, 1, 1))


CHOSEN = {
    "all": ({}, ["second", "third", "first"]),
    "a number": ({"num_modules": 2}, ["second", "third"]),
    "more than there are": ({"num_modules": 9}, ["second", "third", "first"]),
    "a share": ({"top_p": 0.7}, ["second", "third"]),
    "a small share": ({"top_p": 0.01}, ["second"]),
    "a bound": ({"threshold": 4.5}, ["second", "third"]),
    "a bound below all": ({"threshold": 1.0}, []),
}


@pytest.mark.parametrize("name", CHOSEN)
def test_the_best_conditioned_layers_are_chosen_as_in_peft(name):
    asked, wanted = CHOSEN[name]
    assert KappaTuneSelector(Layers(), show_progress=False).get_best_targets(**asked) == wanted
    theirs = pytest.importorskip("peft.helpers")
    assert theirs.KappaTuneSelector(Layers(), show_progress=False).get_best_targets(**asked) == wanted


def test_experts_count_by_the_mean_and_large_weights_are_left_out(capsys):
    found = find_kappa_target_modules(Layers(), top_p=1.0)
    assert found == {
        "target_modules": ["second", "third", "first"],
        "target_parameters": ["experts.up_proj", "experts.down_proj"],
    }
    assert "Condition numbers of layers: 3/3" in capsys.readouterr().err
    small = KappaTuneSelector(Layers(), max_dim_size_to_analyze=2, show_progress=False)
    assert small.get_best_targets() == [] and small.get_best_target_parameters() != []
    none = find_kappa_target_modules(nn.Sequential(nn.Linear(2, 2)), show_progress=False)
    assert none == {"target_modules": ["0"], "target_parameters": None}


@pytest.mark.parametrize("share", [0.0, 1.5, -1.0])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(ValueError, match="top_p"):
        find_kappa_target_modules(Layers(), top_p=share, show_progress=False)


@pytest.mark.parametrize("buffers", [None, False, True])
def test_modules_are_made_without_memory(buffers):
    frozen = nn.Parameter(torch.zeros(2), requires_grad=False)

    @skip_init_on_device
    def real():
        return nn.BatchNorm1d(2)

    with init_empty_weights(include_buffers=buffers):
        made, kept, holder = nn.BatchNorm1d(2), real(), nn.Module()
        holder.register_parameter("one", frozen)
        holder.register_parameter("none", None)
        later = nn.BatchNorm1d(2)
    for module in (made, later):
        assert all(one.device.type == "meta" for one in module.parameters())
        assert {one.device.type for one in module.buffers()} == {"meta" if buffers else "cpu"}
    assert all(one.device.type == "cpu" for one in (*kept.parameters(), *kept.buffers(), *nn.Linear(1, 1).parameters()))
    assert holder.one.device.type == "meta" and not holder.one.requires_grad and holder.none is None


def test_after_an_error_modules_are_made_as_before():
    register = nn.Module.register_parameter
    with pytest.raises(RuntimeError), init_empty_weights():
        raise RuntimeError
    assert nn.Module.register_parameter is register


def test_a_model_without_adapters_has_no_scale():
    said = "scaling is only supported for models with `LoraLayer`s"
    with pytest.raises(ValueError, match=said), rescale_adapter_scale(nn.Linear(2, 2), 0.5):
        pass


def test_caching_changes_nothing():
    torch.manual_seed(0)
    config = ours.LoraConfig(r=2, target_modules=["0"], use_dora=True, init_lora_weights=False)
    model = ours.get_peft_model(nn.Sequential(nn.Linear(4, 4)), config).eval()
    x = torch.randn(2, 4)
    before = model(x)
    with DoraCaching():
        assert torch.equal(model(x), before)
        with torch.no_grad():
            model.base_model.model[0].weight.mul_(2.0)
        changed = model(x)
    assert torch.equal(model(x), changed) and not torch.allclose(changed, before)
