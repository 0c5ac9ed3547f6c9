"""What PEFT accepts and ignores is refused here, by name; and nothing is left behind."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import studio
from studio import peft
from studio.errors import BadFile, DoesNotFit, NoTargets, PartialLoad, UnknownName, UsageError
from studio.peft import LoraConfig, PeftModel, get_peft_model


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2)))


def lora(**fields):
    return LoraConfig(**{"r": 2, "target_modules": ["0"], **fields})


@pytest.mark.parametrize(
    "config, error, words",
    [
        (lambda: lora(target_modules=["0", "q_prj"]), NoTargets, "q_prj"),  # PEFT: silent beside one that matches
        (lambda: lora(target_modules="9"), NoTargets, "'9'"),
        (lambda: lora(target_modules=["1"]), UsageError, "not supported"),  # a ReLU
        (lambda: lora(target_modules=None), UsageError, "Please specify `target_modules`"),
        (lambda: lora(exclude_modules=["nothing"]), NoTargets, "nothing"),
        (lambda: lora(modules_to_save=["heda"]), NoTargets, "heda"),  # PEFT: silent
        (lambda: lora(rank_pattern={"lin9": 3}), UsageError, "lin9"),  # PEFT: a warning
        (lambda: lora(alpha_pattern={"(": 3}), UsageError, "regular expression"),
        (lambda: lora(layers_pattern="layers"), UsageError, "layers_to_transform"),
        (lambda: lora(layers_to_transform=[7]), NoTargets, "7"),
        (lambda: lora(layer_replication=[(0, 1)]), UsageError, "layer_replication"),
        (lambda: lora(init_lora_weights="nonsense"), UsageError, "nonsense"),  # PEFT on an Embedding: the default
        (lambda: lora(bias="some"), UsageError, "bias='some'"),
        (lambda: lora(trainable_token_indices={"emb": [1]}), NoTargets, "emb"),
        (lambda: lora(target_parameters=["weigth"]), UsageError, "weigth"),
        (lambda: peft.LoraConfig(target_modules=["0"], use_bdlora={"a": 1}), UsageError, "use_bdlora"),
        (lambda: peft.IA3Config(target_modules=["0"], feedforward_modules=["2"]), UsageError, "subset"),
        (lambda: peft.PromptTuningConfig(num_virtual_tokens=3), UsageError, "language model"),
        (lambda: peft.AdaLoraConfig(target_modules=["0"]), UsageError, "total_step"),
        (lambda: LoraConfig(task_type="CAUSAL"), UsageError, "CAUSAL_LM"),
        (lambda: peft.XLoraConfig(), UsageError, "X-LoRA"),
    ],
)
def test_configs(config, error, words):
    model = net()
    before, kinds = list(model.state_dict()), [type(module) for module in model.modules()]
    with pytest.raises(error, match=words.replace("(", r"\(")) as caught:
        get_peft_model(model, config())
    assert isinstance(caught.value, ValueError)  # what scripts written for PEFT catch
    assert list(model.state_dict()) == before and [type(module) for module in model.modules()] == kinds
    assert all(parameter.requires_grad for parameter in model.parameters()) and not model._forward_pre_hooks


def test_names():
    model = get_peft_model(net(), lora(), adapter_name="dog")
    for act in (model.set_adapter, model.base_model.set_adapter, model.delete_adapter):  # PEFT: the second is silent
        with pytest.raises(UnknownName, match="dgo.*did you mean 'dog'"):
            act("dgo")
    with pytest.raises(ValueError, match="already exists"):
        model.add_adapter("dog", lora())
    with pytest.raises(ValueError, match="cannot name an adapter"):
        model.add_adapter("a.b", lora())
    with pytest.raises(ValueError, match="different peft types"):
        model.add_adapter("ia", peft.IA3Config(target_modules=["0"], feedforward_modules=[]))
    with pytest.raises(ValueError, match="dgo"):
        model(torch.ones(1, 6), adapter_names=["dgo"])
    with pytest.raises(ValueError, match="got 1 and 2"):
        model(torch.ones(2, 6), adapter_names=["dog"])
    with pytest.raises(ValueError, match="selected_adapters"):
        model.save_pretrained("nowhere", selected_adapters=["dgo"])
    assert model.active_adapters == ["dog"]
    model(torch.ones(1, 6))  # an error leaves no hook behind


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"adapter_name": "a"}, "exists already"),  # PEFT: returns silently
        ({"adapters": ["a", "c"]}, "c"),
        ({"weights": [1.0]}, "2 adapters and 1 weights"),
        ({"combination_type": "lineer"}, "lineer"),
        ({"combination_type": "ties"}, "density"),
        ({"combination_type": "ties_svd", "density": 1.5}, "density=1.5"),
        ({"combination_type": "ties", "density": 0.5, "majority_sign_method": "most"}, "most"),
        ({"combination_type": "linear"}, "same r"),
        ({"combination_type": "svd", "svd_rank": 9}, "rank 9"),
    ],
)
def test_combinations(fields, words):
    model = get_peft_model(net(), lora(), adapter_name="a")
    model.add_adapter("b", lora(r=3))
    arguments = {"adapters": ["a", "b"], "weights": [0.5, 0.5], "adapter_name": "ab", **fields}
    with pytest.raises(ValueError, match=words):
        model.add_weighted_adapter(**arguments)
    assert list(model.peft_config) == ["a", "b"]


@pytest.fixture
def folder(tmp_path):
    get_peft_model(net(), lora(init_lora_weights=False)).save_pretrained(tmp_path)
    return tmp_path


def changed(folder, **fields):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))
    return folder


def test_tensor_names(folder):
    """PEFT: a warning, and the model runs as the base."""
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({key.replace("lora_A", "lora_C"): tensor for key, tensor in tensors.items()}, file)
    with pytest.raises((PartialLoad, DoesNotFit, BadFile), match="lora_C"):
        PeftModel.from_pretrained(net(), folder)
    save_file({**tensors, "base_model.model.9.lora_A.weight": torch.zeros(2, 6)}, file)
    with pytest.raises(PartialLoad, match="9"):
        PeftModel.from_pretrained(net(), folder)
    save_file({key: tensor for key, tensor in tensors.items() if "lora_A" in key}, file)
    model = net()
    with pytest.raises((UsageError, PartialLoad), match="lora_B"):
        PeftModel.from_pretrained(model, folder)
    assert type(model[0]) is nn.Linear and not hasattr(model, "peft_config")


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"peft_type": "XLORA"}, "XLORA.*the studio does not have"),
        ({"peft_type": "LORRA"}, "LORRA"),
        ({"magic_dropout": 0.3}, "magic_dropout=0.3"),  # PEFT: a warning
        ({"use_bdlora": {"nblocks": 2}}, "use_bdlora"),
        ({"modules_to_save": ["2.1"]}, "lacks 2 tensors"),
    ],
)
def test_folders(folder, fields, words):
    model = net()
    with pytest.raises((UsageError, PartialLoad), match=words):
        PeftModel.from_pretrained(model, changed(folder, **fields))
    assert type(model[0]) is nn.Linear and type(model[2][1]) is nn.Linear


def test_unknown_fields_that_are_off_are_no_matter(folder):
    assert PeftModel.from_pretrained(net(), changed(folder, next_years_field=False)).active_adapter == "default"


def test_a_folder_without_an_adapter_says_where_one_is(tmp_path):
    get_peft_model(net(), lora(), adapter_name="dog").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="it is in .*dog"):
        PeftModel.from_pretrained(net(), tmp_path)


def test_peft_is_never_imported():
    code = "import sys, studio.peft; assert 'peft' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_no_peft_folder_can_hold_is_said_before_the_training(tmp_path):
    """PEFT computes something else on a grouped convolution; a night of training should not end in a refusal."""

    class Grouped(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 8, 3, groups=2)

        def forward(self, x):
            return self.conv(x)

    with pytest.warns(peft.PeftWarning, match=r"save_pretrained will refuse.*grouped convolution.*studio\.save"):
        model = get_peft_model(Grouped(), lora(target_modules=["conv"], init_lora_weights="gaussian"))
    with pytest.raises(DoesNotFit, match="grouped convolution"):
        model.save_pretrained(tmp_path / "folder")
    assert not (tmp_path / "folder" / "adapter_model.safetensors").exists()
    torch.nn.init.normal_(model.base_model.model.conv.lora_B["default"].weight)
    x = torch.randn(2, 4, 5, 5)
    file = studio.save(model.get_base_model(), tmp_path / "conv.safetensors", name="default")  # as the warning says
    other = Grouped()
    other.load_state_dict(model.get_base_model().state_dict(), strict=False)
    studio.load(other, file)
    assert torch.equal(other(x), model(x))


@pytest.mark.parametrize("kind", [peft.AutoPeftModel, peft.AutoPeftModelForCausalLM])
@pytest.mark.parametrize("library", ["os", "transformersx", "subprocess.run"])
def test_a_folder_that_names_a_class_of_another_library_opens_nothing(kind, library, tmp_path):
    config = peft.LoraConfig(target_modules=["q_proj"], base_model_name_or_path="nowhere")
    config.auto_mapping = {"parent_library": library, "base_model_class": "system"}
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"wants to import '{library}' which is not in the import allowlist"):
        kind.from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", ["LoraConfig", "IA3Config", "PromptTuningConfig", "VeraConfig"])
def test_a_field_of_a_later_peft_is_left_out_of_a_config_and_refused_by_a_model(kind, tmp_path):
    """PEFT drops it with this warning; here a model that may compute something else is not loaded."""
    own = {"num_virtual_tokens": 2, "task_type": "CAUSAL_LM"} if kind == "PromptTuningConfig" else {}
    config = getattr(peft, kind)(**own)
    config.save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"foobar": "baz", "spam": 123, "later": None}))
    with pytest.warns(UserWarning, match=rf"Unexpected keyword arguments \['foobar', 'spam'\] for class {kind}"):
        read = peft.PeftConfig.from_pretrained(tmp_path)
    assert read.to_dict() == config.to_dict() and type(read) is type(config)
    with pytest.raises(ValueError, match="the field (foobar|spam)="):
        peft.PeftModel.from_pretrained(torch.nn.Sequential(torch.nn.Linear(2, 2)), tmp_path)
