"""What is done to one layer acts at once, and what the core says is what PEFT's names show: there is one truth."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import studio
from studio import peft
from studio.peft.tuners.tuners_utils import BaseTunerLayer

X = torch.linspace(-1, 1, 24).view(4, 6)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.second(self.first(x).tanh()).tanh())


def net():
    torch.manual_seed(0)
    return Net().eval()


def lora(**fields):
    fields = {"r": 2, "lora_alpha": 6, "target_modules": ["first", "second"], "init_lora_weights": False, **fields}
    return peft.LoraConfig(**fields)


def two(**fields):
    """A model with the adapters "a", which acts, and "b"."""
    torch.manual_seed(1)
    model = peft.get_peft_model(net(), lora(**fields), adapter_name="a")
    model.add_adapter("b", lora())
    return model.eval()


def change(layer):
    """What the adapters change in the output of one layer that is called by itself."""
    plain = net().get_submodule("first")
    return layer(X) - plain(X)


def same(a, b, tolerance=1e-6):
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance)


def scaled(layer):
    layer.scale_layer(0.5)


def set_scale(layer):
    layer.set_scale("a", 0.5)


def assigned(layer):
    layer.scaling["a"] = 0.5 * 6 / 2


@pytest.mark.parametrize("verb", [scaled, set_scale, assigned])
def test_the_scale_of_a_layer_that_is_called_by_itself(verb):
    layer = two().base_model.model.first
    whole = change(layer)
    verb(layer)
    assert layer.scaling["a"] == pytest.approx(1.5) and same(change(layer), 0.5 * whole)
    layer.set_adapter("b")
    layer.set_adapter("a")
    assert same(change(layer), 0.5 * whole)  # it is kept while the adapter is off
    layer.unscale_layer()
    assert torch.equal(change(layer), whole)


def test_a_layer_is_switched_and_its_adapter_set_by_itself():
    model = two()
    layer, other = model.base_model.model.first, model.base_model.model.second
    a = change(layer)
    layer.enable_adapters(False)
    assert torch.equal(layer(X), net().first(X)) and layer.disable_adapters and not other.disable_adapters
    layer.enable_adapters(True)
    assert torch.equal(change(layer), a)
    layer.set_adapter("b")
    assert layer.active_adapters == ["b"] and other.active_adapters == ["a"] and not same(change(layer), a, 1e-3)
    layer.set_adapter(["b", "a"])
    assert layer.active_adapters == ["b", "a"]
    other.set_adapter(["b", "a"])
    assert model.active_adapters == ["b", "a"]


def test_a_scale_that_changes_inside_the_models_own_call():
    model = two()
    base = model.base_model.model
    full = model(X)

    def off(module, args):
        for layer in base.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.scale_layer(0.0)

    handle = base.first.register_forward_pre_hook(off)
    assert torch.equal(model(X), net()(X)) and base.first.active_adapters == ["a"]
    handle.remove()
    for layer in (base.first, base.second):
        layer.set_scale("a", 1.0)
    assert torch.equal(model(X), full)


def test_merging_at_a_layer_and_switching_layers_of_a_merged_model():
    model = two()
    base = model.base_model.model
    live, weight = model(X), base.first.weight
    base.second.merge()
    assert base.first.weight is not weight and base.first.merged_adapters == ["a"] and same(model(X), live, 1e-5)
    merged = model(X)
    base.first.enable_adapters(False)
    assert base.first.weight is weight and torch.equal(base.first(X), net().first(X))
    base.first.enable_adapters(True)
    assert torch.equal(model(X), merged) and base.first.merged
    base.first.unmerge()
    assert base.first.weight is weight and torch.equal(model(X), live)


def test_what_acts_is_what_the_core_says():
    model = two()
    base = model.base_model.model
    studio.blend(base, {"b": 0.5})
    assert model.active_adapters == ["b"] == base.first.active_adapters
    assert base.first.scaling["b"] == pytest.approx(0.5 * 3) and model.get_model_status().active_adapters == ["b"]
    live = model(X)
    studio.bake(base)
    assert base.first.merged_adapters == ["b"] and same(model(X), live, 1e-5)
    model.unmerge_adapter()
    assert torch.equal(model(X), live)
    model.set_adapter("a")
    assert studio.adapters(base)["a"].strength == 1.0 and studio.adapters(base)["b"].strength == 0.0


def test_switching_all_layers_off_one_by_one_switches_off_what_stands_beside_them(tmp_path):
    """As transformers' ``disable_adapters`` and ``set_adapter`` do it: for every layer and every wrapper."""
    torch.manual_seed(1)
    model = peft.get_peft_model(net(), lora(bias="all", modules_to_save=["head"]), adapter_name="a")
    model.add_adapter("b", lora(modules_to_save=["head"]))
    base = model.eval().base_model.model
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.25)
    a = model(X)
    parts = [one for one in base.modules() if isinstance(one, BaseTunerLayer | peft.utils.ModulesToSaveWrapper)]
    assert len(parts) == 3
    for part in parts:
        part.enable_adapters(False)
    assert torch.equal(model(X), net()(X)) and not model.has_active_enabled_adapter
    for part in parts:
        part.enable_adapters(True)
    assert torch.equal(model(X), a)
    for part in parts:
        part.set_adapter("b")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert model.active_adapters == ["b"] == base.head.active_adapters and all(".b." in name for name in trained)
    b = model(X)
    model.set_adapter("b")
    assert torch.equal(model(X), b) and not same(a, b, 1e-3)


def test_nothing_is_left_in_the_layers():
    base = net()
    before = {name: set(vars(module)) for name, module in base.named_modules()}
    model = peft.get_peft_model(base, lora(modules_to_save=["head"]), adapter_name="a")
    model.add_adapter("b", lora(target_modules=["first"]))
    base.first.set_scale("a", 0.5)
    base.first.enable_adapters(False)
    model.delete_adapter("b")
    assert isinstance(base.first, BaseTunerLayer) and base.first.scaling == {"a": 1.5}
    model.unload()
    assert {name: set(vars(module)) for name, module in base.named_modules()} == before
    assert torch.equal(base(X), net()(X))


def test_a_copy_bounds_its_own_rotations():
    config = peft.OFTConfig(oft_block_size=2, coft=True, eps=1e-5, target_modules=["first"], init_weights=False)
    model = peft.get_peft_model(net(), config)
    other = copy.deepcopy(model)
    model(X)
    assert not same(other.base_model.model.first.oft_R["default"].weight,
                    model.base_model.model.first.oft_R["default"].weight)  # fmt: skip
    other(X)
    assert same(other(X), model(X))


def test_a_call_by_sample_changes_nothing_that_stays():
    model = two()
    layer = model.base_model.model.first
    model.base_model.set_adapter(["b", "a"])
    model(X, adapter_names=["a", "__base__", "b", "a"])
    assert model.active_adapters == ["b", "a"]
    layer.set_adapter("b")
    alone = {name: two() for name in ("a", "b")}
    for name, one in alone.items():
        one.set_adapter(name)
    mixed = model(X, adapter_names=["a", "b", "a", "b"])  # "a" does not act on this layer otherwise
    for row, name in enumerate(["a", "b", "a", "b"]):
        assert same(mixed[row], alone[name](X)[row])
    assert layer.active_adapters == ["b"]


def test_the_last_adapter_of_an_injected_model_is_deleted_as_transformers_does():
    base = peft.inject_adapter_in_model(lora(), net(), "a")
    peft.functional.delete_adapter(base, "a")
    assert base.peft_config == {} and type(base.first) is nn.Linear  # which transformers looks at, and deletes then
