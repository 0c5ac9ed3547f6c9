"""What is switched, chosen, filled or counted by itself: a copy of a module, a bare parameter, a layer's tensors."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from studio import peft
from studio.peft.tuners.lora.layer import ParamWrapper
from studio.peft.tuners.tuners_utils import BaseTunerLayer

X = torch.ones(2, 4)


class Expert(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(2, 4, 4))

    def forward(self, x):
        return x @ self.w[0] + x @ self.w[1]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.lin, self.head, self.ex = nn.Linear(4, 4), nn.Linear(4, 4), Expert()

    def forward(self, x):
        return self.head(self.ex(self.lin(x)))


def with_heads():
    config = peft.LoraConfig(r=2, target_modules=["lin"], modules_to_save=["head"])
    model = peft.get_peft_model(Net(), config)
    model.add_adapter("other", config)
    for number, one in enumerate(model.head.modules_to_save.values(), 1):
        nn.init.constant_(one.weight, number)
    return model


def test_a_copy_is_switched_by_itself_and_not_by_the_layers():
    model = with_heads()
    acting = model(X)
    model.lin.enable_adapters(False)  # the first steps of a LoRA change nothing
    assert torch.equal(model(X), acting) and model.get_model_status().enabled == "irregular"
    model.head.enable_adapters(False)
    assert not torch.allclose(model(X), acting) and model.head.disable_adapters
    with model.disable_adapter():
        pass
    assert model.head.disable_adapters and model.lin.disable_adapters
    model.base_model.enable_adapter_layers()
    assert torch.equal(model(X), acting) and model.get_model_status().enabled is True


def test_a_copy_is_chosen_by_itself_until_the_model_chooses():
    model = with_heads()
    first = model(X)
    model.head.set_adapter("other")
    assert model.head.active_adapters == ["other"] and model.lin.active_adapters == ["default"]
    assert model.get_model_status().active_adapters == "irregular"
    chosen = model(X)
    model.set_adapter("other")
    assert torch.equal(model(X), chosen) and not torch.allclose(chosen, first)
    model.set_adapter("default")
    assert torch.equal(model(X), first)


def test_a_bare_parameter_is_a_layer_of_its_own():
    config = peft.LoraConfig(r=2, target_parameters=["ex.w"], init_lora_weights=False)
    model = peft.get_peft_model(Net(), config)
    (layer,) = (one for one in model.modules() if isinstance(one, BaseTunerLayer))
    assert isinstance(layer, ParamWrapper) and layer.parameter_name == "w"
    assert model.targeted_parameter_names == ["ex.w"] and model.targeted_module_names == []
    assert [one.module_type for one in model.get_layer_status()] == ["lora.ParamWrapper"]
    acting = model(X)
    layer.enable_adapters(False)
    plain = model(X)
    layer.enable_adapters(True)
    layer.set_scale("default", 0.0)
    assert torch.allclose(model(X), plain) and torch.equal(plain, Net()(X)) and not torch.allclose(plain, acting)
    model.add_adapter("other", config)
    assert set(layer.lora_A) == {"default", "other"}
    with pytest.raises(ValueError, match="ParamWrapper does not support mixed adapter batches"):
        model(X, adapter_names=["default", "other"])
    with pytest.raises(ValueError, match="add_weighted_adapter does not support targeting"):
        model.add_weighted_adapter(["default", "other"], [1.0, 1.0], "both")
    assert type(model.unload().ex) is Expert


def test_a_factor_is_a_linear_layer_and_a_tensor_can_be_filled():
    model = peft.get_peft_model(Net(), peft.LoraConfig(r=2, target_modules=["lin"]))
    down = model.lin.lora_A["default"]
    assert isinstance(down, nn.Linear) and torch.equal(down(X), X @ down.weight.T)
    shira = peft.get_peft_model(Net(), peft.ShiraConfig(r=1, target_modules=["lin"]))
    before = shira(X)
    shira.lin.shira_weight["default"] = torch.ones(8)
    assert not torch.allclose(shira(X), before)
    with pytest.raises(ValueError, match="takes a tensor of the shape"):
        shira.lin.shira_weight["default"] = torch.ones(7)


def test_excluded_modules_need_not_be_layers():
    model = peft.get_peft_model(Net(), peft.LoraConfig(r=2, target_modules=["lin", "ex"], exclude_modules=["ex"]))
    assert model.targeted_module_names == ["lin"]
