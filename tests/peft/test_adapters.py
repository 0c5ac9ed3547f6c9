"""Each of PEFT's verbs over the core: what it does to outputs, gradients, names and files; PEFT is the oracle."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import studio
import tiny
from studio import peft as ours
from studio.peft.helpers import rescale_adapter_scale
from studio.peft.tuners.lora import LoraLayer
from studio.peft.tuners.tuners_utils import BaseTunerLayer
from studio.peft.utils.hotswap import hotswap_adapter, prepare_model_for_compiled_hotswap

X = torch.linspace(-1, 1, 60).view(6, 10)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin0 = nn.Linear(10, 12)
        self.deep = nn.ModuleDict({"lin1": nn.Linear(12, 12), "head": nn.Linear(12, 3)})
        self.lm_head = nn.Linear(3, 4)

    def forward(self, x):
        return self.lm_head(self.deep["head"](self.deep["lin1"](self.lin0(x).tanh()).tanh()))


def net():
    torch.manual_seed(0)
    return Net().eval()


def lora(**fields):
    return ours.LoraConfig(**{"r": 3, "lora_alpha": 5, "target_modules": ["lin0", "lin1"], **fields})


def random(**fields):
    return lora(init_lora_weights=False, **fields)


def two(first=None, second=None):
    """A model with the adapters "a" (active) and "b"."""
    torch.manual_seed(1)
    model = ours.get_peft_model(net(), first or random(), adapter_name="a")
    model.add_adapter("b", second or random())
    return model.eval()


def alone(model, name):
    model.set_adapter(name)
    return model(X)


def same(a, b, tolerance=1e-5):
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance)


def names_of_trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


# -- names and shapes of attributes ------------------------------------------------------------------------------------


def test_a_wrapped_model_has_pefts_attributes():
    base = net()
    model = ours.get_peft_model(base, random(use_rslora=True))
    assert isinstance(model, ours.PeftModel) and type(model.base_model) is ours.LoraModel
    assert model.base_model.model is base and model.get_base_model() is base
    assert model.active_adapter == "default" and model.active_adapters == ["default"]
    layer = base.lin0
    assert isinstance(layer, nn.Linear) and isinstance(layer, LoraLayer) and isinstance(layer, BaseTunerLayer)
    assert layer.r == {"default": 3} and layer.scaling["default"] == pytest.approx(5 / 3**0.5)
    assert layer.lora_A["default"].weight.shape == (3, 10) and layer.lora_B["default"].weight.shape == (12, 3)
    assert layer.lora_A["default"].weight is studio.adapters.state(base)["lin0.down"]
    delta = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * layer.scaling["default"]
    assert same(layer.get_delta_weight("default"), delta)
    assert type(layer.get_base_layer()) is nn.Linear and same(layer.base_layer(X), net().lin0(X), 0.0)


def test_parameters_and_state_dict_have_pefts_names():
    model = ours.get_peft_model(net(), lora(modules_to_save=["head"]))
    assert names_of_trained(model) == {
        *(f"base_model.model.{path}.lora_{x}.default.weight" for path in ("lin0", "deep.lin1") for x in "AB"),
        *(f"base_model.model.deep.head.modules_to_save.default.{name}" for name in ("weight", "bias")),
    }
    state = model.state_dict()
    assert "base_model.model.lin0.lora_A.default.weight" in state and not any(".adapters." in key for key in state)
    other = ours.get_peft_model(net(), random(modules_to_save=["head"]))
    other.load_state_dict(state)
    assert same(other(X), model(X), 0.0)


@pytest.mark.parametrize("method", "lora ia3 lokr dora loha hra road oft boft vera adalora".split())
def test_files_go_to_peft_and_come_from_peft(method, tmp_path):
    """The same config in both; what one saves the other loads, and the output is the same."""
    peft = pytest.importorskip("peft")
    make = {
        "lora": lambda lib: lib.LoraConfig(r=3, lora_alpha=5, target_modules=["lin0", "lin1"], init_lora_weights=False),
        "dora": lambda lib: lib.LoraConfig(r=3, target_modules=["lin0"], use_dora=True, init_lora_weights=False),
        "ia3": lambda lib: lib.IA3Config(
            target_modules=["lin0", "lin1"], feedforward_modules=["lin1"], init_ia3_weights=False
        ),
        "lokr": lambda lib: lib.LoKrConfig(r=2, alpha=3, target_modules=["lin0", "lin1"], init_weights=False),
        "loha": lambda lib: lib.LoHaConfig(r=2, alpha=3, target_modules=["lin0", "lin1"], init_weights=False),
        "hra": lambda lib: lib.HRAConfig(r=2, target_modules=["lin0", "lin1"], init_weights=False),
        "road": lambda lib: lib.RoadConfig(
            variant="road_4", group_size=2, target_modules=["lin0", "lin1"], init_weights=False
        ),
        "oft": lambda lib: lib.OFTConfig(oft_block_size=2, target_modules=["lin0", "lin1"], init_weights=False),
        "boft": lambda lib: lib.BOFTConfig(boft_block_size=2, target_modules=["lin0", "lin1"], init_weights=False),
        "vera": lambda lib: lib.VeraConfig(r=4, target_modules=["lin0", "lin1"], init_weights=False),
        "adalora": lambda lib: lib.AdaLoraConfig(
            init_r=4, target_r=2, total_step=10, target_modules=["lin0", "lin1"], init_lora_weights=False
        ),
    }[method]
    torch.manual_seed(2)
    mine = ours.get_peft_model(net(), make(ours)).eval()
    mine.save_pretrained(tmp_path / "mine")
    assert not same(mine(X), net()(X), 1e-3)
    assert same(peft.PeftModel.from_pretrained(net(), str(tmp_path / "mine"))(X), mine(X))
    theirs = peft.get_peft_model(net(), make(peft)).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = ours.PeftModel.from_pretrained(net(), tmp_path / "theirs")
    assert same(loaded(X), theirs(X)) and not names_of_trained(loaded)
    assert loaded.load_adapter(tmp_path / "theirs", "again").missing_keys == []


def test_a_config_is_written_the_same_each_time_and_read_back(tmp_path):
    config = lora(target_modules=["lin1", "lin0"], rank_pattern={"lin0": 2}, task_type="CAUSAL_LM")
    config.save_pretrained(tmp_path)
    first = (tmp_path / "adapter_config.json").read_bytes()
    read = ours.PeftConfig.from_pretrained(tmp_path)
    assert type(read) is ours.LoraConfig and read.r == 3 and read.rank_pattern == {"lin0": 2}
    assert read.target_modules == {"lin0", "lin1"} and not read.inference_mode
    read.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_config.json").read_bytes() == first


# -- which adapters act ------------------------------------------------------------------------------------------------


def test_set_adapter_changes_who_acts_and_who_is_trained():
    model = two()
    a, b = alone(model, "a"), alone(model, "b")
    assert not same(a, b, 1e-3) and all(".b." in name for name in names_of_trained(model))
    model.base_model.set_adapter(["a", "b"])
    assert model.active_adapters == ["a", "b"] and len(names_of_trained(model)) == 8
    model.set_requires_grad("a", False)
    assert all(".b." in name for name in names_of_trained(model)) and model.active_adapters == ["a", "b"]
    model.set_adapter("a", inference_mode=True)
    assert names_of_trained(model) == set() and same(model(X), a, 0.0)


def test_disable_restores_everything_after_an_error_too():
    model, plain = two(), net()(X)
    before, trained = model(X), names_of_trained(model)
    with pytest.raises(RuntimeError, match="stop"), model.disable_adapter():
        assert same(model(X), plain, 0.0) and names_of_trained(model) == set()
        with model.disable_adapter():
            assert same(model(X), plain, 0.0)
        assert same(model(X), plain, 0.0)  # still off
        raise RuntimeError("stop")
    assert same(model(X), before, 0.0) and names_of_trained(model) == trained


def test_delete_makes_the_next_one_act():
    model = two()
    b = alone(model, "b")
    model.set_adapter("a")
    with pytest.warns(ours.PeftWarning, match="Setting active adapter to b"):
        model.delete_adapter("a")
    assert list(model.peft_config) == ["b"] and same(model(X), b, 0.0)


def test_unload_gives_the_base_back_bit_for_bit():
    base = net()
    before, kinds = copy.deepcopy(base.state_dict()), [type(module) for module in base.modules()]
    model = ours.get_peft_model(base, random(modules_to_save=["head"], bias="all"))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(X).sum().backward()
    optimizer.step()
    back = model.unload()
    assert back is base and not hasattr(base, "peft_config")
    assert [type(module) for module in base.modules()] == kinds
    assert list(base.state_dict()) == list(before)
    assert all(torch.equal(tensor, before[key]) for key, tensor in base.state_dict().items())


# -- merging -----------------------------------------------------------------------------------------------------------


def test_merge_unmerge_and_unload():
    model = two()
    model.base_model.set_adapter(["a", "b"])
    live, weight = model(X), model.base_model.model.lin0.weight
    model.merge_adapter()
    layer = model.base_model.model.lin0
    assert layer.merged and layer.merged_adapters == ["a", "b"] and same(model(X), live)
    with model.disable_adapter():
        assert same(model(X), net()(X), 0.0)
    assert same(model(X), live)
    model.unmerge_adapter()
    assert model.base_model.model.lin0.weight is weight and same(model(X), live, 0.0)
    plain = model.merge_and_unload()
    assert type(plain.lin0) is nn.Linear and same(plain(X), live)
    assert list(plain.state_dict()) == list(net().state_dict())


def test_merging_one_after_the_other_is_merging_both():
    model = two()
    model.base_model.set_adapter(["a", "b"])
    live = model(X)
    model.merge_adapter(["a"])
    model.merge_adapter(["b"])
    assert same(model(X), live)
    with pytest.raises(ValueError, match="while they are merged"):
        model.delete_adapter("a")


def test_a_safe_merge_refuses_nan_and_leaves_the_weights():
    model = ours.get_peft_model(net(), random())
    weight = model.base_model.model.lin0.weight
    model.base_model.model.lin0.lora_A["default"].weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="NaNs detected in the merged weights. The adapter default"):
        model.merge_adapter(safe_merge=True)
    assert model.base_model.model.lin0.weight is weight and not model.base_model.model.lin0.merged


# -- weighted ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["linear", "cat", "svd", "ties", "ties_svd", "magnitude_prune", "magnitude_prune_svd"])
@pytest.mark.parametrize("sign", ["total", "frequency"])
def test_weighted_adapters_are_pefts(kind, sign, tmp_path):
    """Two adapters saved here, combined here and in PEFT."""
    peft = pytest.importorskip("peft")
    model = two(random(lora_alpha=2), random(lora_alpha=7))
    model.save_pretrained(tmp_path)
    arguments = {"weights": [0.7, 1.2], "combination_type": kind, "majority_sign_method": sign}
    if kind not in ("linear", "cat", "svd"):
        arguments["density"] = 0.6
    model.add_weighted_adapter(["a", "b"], adapter_name="c", **arguments)
    theirs = peft.PeftModel.from_pretrained(net(), str(tmp_path / "a"), adapter_name="a")
    theirs.load_adapter(str(tmp_path / "b"), "b")
    theirs.add_weighted_adapter(["a", "b"], adapter_name="c", **arguments)
    theirs.set_adapter("c")
    assert same(alone(model, "c"), theirs(X), 1e-4)
    model.save_pretrained(tmp_path / "again", selected_adapters=["c"])
    assert same(ours.PeftModel.from_pretrained(net(), tmp_path / "again" / "c")(X), model(X))


@pytest.mark.parametrize("kind", ["dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd"])
def test_dropping_nothing_is_the_plain_combination(kind):
    """With density 1 DARE drops nothing: dare_linear is linear, dare_ties is ties."""
    model = two()
    model.add_weighted_adapter(["a", "b"], [0.5, 0.5], "c", combination_type=kind, density=1.0)
    plain = kind.replace("dare_", "")
    plain = "svd" if plain == "linear_svd" else plain
    model.add_weighted_adapter(["a", "b"], [0.5, 0.5], "d", combination_type=plain, density=1.0)
    assert same(alone(model, "c"), alone(model, "d"))


def test_exact_combinations_are_the_sum_of_the_changes():
    model = two(random(use_dora=True), random(use_dora=True))
    base = net()
    layers = model.base_model.model
    changes = [0.7 * layers.lin0.get_delta_weight("a"), -0.4 * layers.lin0.get_delta_weight("b")]
    model.add_weighted_adapter(["a", "b"], [0.7, -0.4], "c", combination_type="svd", svd_rank=10)
    assert same(layers.lin0.get_delta_weight("c"), sum(changes)) and same(layers.lin0.weight, base.lin0.weight, 0.0)
    with pytest.raises(ValueError, match="would leave out the magnitude of a DoRA adapter"):
        model.add_weighted_adapter(["a", "b"], [0.7, -0.4], "e", combination_type="linear")


def test_weighted_gains_are_summed():
    config = ours.IA3Config(target_modules=["lin0"], feedforward_modules=[], init_ia3_weights=False)
    torch.manual_seed(3)
    model = ours.get_peft_model(net(), config, adapter_name="a")
    model.add_adapter("b", copy.deepcopy(config))
    gains = model.base_model.model.lin0.ia3_l
    model.add_weighted_adapter(["a", "b"], [0.3, 0.7], "c")
    assert same(gains["c"], 0.3 * gains["a"] + 0.7 * gains["b"])


# -- per sample --------------------------------------------------------------------------------------------------------

METHODS = {
    "lora": lambda: random(),
    "dora": lambda: random(use_dora=True),
    "ia3": lambda: ours.IA3Config(target_modules=["lin0"], feedforward_modules=["lin0"], init_ia3_weights=False),
    "loha": lambda: ours.LoHaConfig(r=2, target_modules=["lin0"], init_weights=False),
    "lokr": lambda: ours.LoKrConfig(r=2, target_modules=["lin0"], init_weights=False),
    "oft": lambda: ours.OFTConfig(oft_block_size=2, target_modules=["lin0"], init_weights=False),
    "hra": lambda: ours.HRAConfig(r=2, target_modules=["lin0"], init_weights=False),
    "road": lambda: ours.RoadConfig(group_size=4, target_modules=["lin0"], init_weights=False),
    "vera": lambda: ours.VeraConfig(r=4, target_modules=["lin0"], init_weights=False),
}


@pytest.mark.parametrize("method", METHODS)
def test_adapter_names_for_every_method_in_training_too(method):
    """Each row is what it is in a batch of its own; gradients go to the row's own adapter."""
    model = two(METHODS[method](), METHODS[method]())
    names = ["a", "__base__", "b", "b", "a", "__base__"]
    with model.disable_adapter():
        wanted = {"__base__": model(X)}
    wanted |= {name: alone(model, name) for name in ("a", "b")}
    model.base_model.set_adapter(["a", "b"])
    mixed = model(X, adapter_names=names)
    for row, name in enumerate(names):
        assert same(mixed[row], wanted[name][row])
    model.train()
    model(X, adapter_names=["a", "__base__"] * 3).sum().backward()
    state = model.state_dict(keep_vars=True)
    assert all(state[key].grad.abs().sum() > 0 for key in names_of_trained(model) if ".a" in key)
    assert all(state[key].grad is None or not state[key].grad.any() for key in names_of_trained(model) if ".b" in key)


def test_adapter_names_with_whole_modules():
    model = two(random(modules_to_save=["head"]), random())
    model.base_model.model.deep["head"].modules_to_save["a"].weight.data.add_(1.0)
    a, b = alone(model, "a"), alone(model, "b")
    mixed = model(X, adapter_names=["a", "b"] * 3)
    assert same(mixed[::2], a[::2]) and same(mixed[1::2], b[1::2])


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
@pytest.mark.filterwarnings("ignore:The attention mask")
def test_adapter_names_in_generate(kind, beams):
    if kind == "decoder":
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
        base = tiny.llama(vocab_size=64, **sizes)
    else:
        base = tiny.t5(vocab_size=64, d_model=32, d_ff=48, num_heads=4)
    base.generation_config.pad_token_id, base.generation_config.eos_token_id = 0, None
    model = ours.get_peft_model(base, ours.LoraConfig(r=4, lora_alpha=32, init_lora_weights=False), adapter_name="a")
    model.add_adapter("b", ours.LoraConfig(r=4, lora_alpha=32, init_lora_weights=False))
    model.eval()
    ids = torch.randint(3, 64, (3, 5))
    options = {"max_new_tokens": 5, "num_beams": beams, "do_sample": False}
    mixed = model.generate(input_ids=ids, adapter_names=["b", "__base__", "a"], **options)
    for row, name in enumerate(["b", "__base__", "a"]):
        if name == "__base__":
            with model.disable_adapter():
                single = model.generate(input_ids=ids[row : row + 1], **options)
        else:
            model.set_adapter(name)
            single = model.generate(input_ids=ids[row : row + 1], **options)
        assert torch.equal(mixed[row], single[0])
    assert not base._forward_pre_hooks or len(base._forward_pre_hooks) == 1  # the core's own


# -- what an adapter has beside its layers -----------------------------------------------------------------------------


def test_modules_to_save_are_exact_per_adapter_saved_and_restored(tmp_path):
    model = two(random(modules_to_save=["head"]), random(modules_to_save=["head"]))
    assert not isinstance(model.base_model.model.lm_head, ours.utils.ModulesToSaveWrapper)  # its name only ends alike
    head = model.base_model.model.deep["head"]
    assert isinstance(head, ours.utils.ModulesToSaveWrapper) and isinstance(head, nn.Linear)
    head.modules_to_save["b"].weight.data.mul_(2.0)
    a, b = alone(model, "a"), alone(model, "b")
    model.save_pretrained(tmp_path)
    again = ours.PeftModel.from_pretrained(net(), tmp_path / "b")
    assert same(again(X), b, 0.0) and not same(a, b, 1e-3)
    merged = again.merge_and_unload()
    assert type(merged.deep["head"]) is nn.Linear and same(merged(X), b)


@pytest.mark.parametrize("word", ["all", "lora_only"])
def test_biases_are_trained_saved_and_given_back(word, tmp_path):
    base = net()
    before = base.lin0.bias.detach().clone()
    model = ours.get_peft_model(base, random(bias=word))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(X).sum().backward()
    optimizer.step()
    assert not torch.equal(base.lin0.bias, before)
    assert (base.lm_head.bias.grad is not None) == (word == "all")
    model.save_pretrained(tmp_path)
    trained = model.eval()(X)
    assert same(ours.PeftModel.from_pretrained(net(), tmp_path)(X), trained, 0.0)
    peft = pytest.importorskip("peft")
    assert same(peft.PeftModel.from_pretrained(net(), str(tmp_path))(X), trained)
    with model.disable_adapter():  # PEFT leaves the biases trained here
        assert same(model(X), net()(X), 0.0)
    model.unload()
    assert torch.equal(base.lin0.bias, before)


def test_token_rows_beside_lora(tmp_path):
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.emb, self.lin = nn.Embedding(20, 6), nn.Linear(6, 3)

        def forward(self, ids):
            return self.lin(self.emb(ids))

    config = ours.LoraConfig(
        target_modules=["lin"], r=2, init_lora_weights=False, trainable_token_indices={"emb": [3, 7]}
    )
    model = ours.get_peft_model(Words(), config)
    ids = torch.arange(20)
    rows = model.base_model.model.emb.token_adapter.trainable_tokens_delta["default"]
    assert rows.shape == (2, 6) and rows.requires_grad
    rows.data.add_(1.0)
    change = (model.base_model.model.emb(ids) - Words().emb(ids)).abs().sum(1)
    assert set(change.nonzero()[:, 0].tolist()) == {3, 7}
    model.save_pretrained(tmp_path)
    assert same(ours.PeftModel.from_pretrained(Words(), tmp_path)(ids), model(ids), 0.0)
    peft = pytest.importorskip("peft")
    assert same(peft.PeftModel.from_pretrained(Words(), str(tmp_path))(ids), model(ids))


def test_bare_parameters_are_targets(tmp_path):
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.proj = nn.Module()
            self.proj.weight = nn.Parameter(torch.randn(6, 5))
            self.proj.forward = None
            del self.proj.forward

        def forward(self, x):
            return x @ self.proj.weight.T

    model = ours.get_peft_model(
        Bare(), ours.LoraConfig(r=2, target_parameters=["proj.weight"], init_lora_weights=False)
    )
    assert model.get_nb_trainable_parameters()[0] == 2 * (6 + 5)
    model.save_pretrained(tmp_path)
    x = torch.ones(1, 5)
    assert not same(model(x), Bare()(x), 1e-3)
    assert same(ours.PeftModel.from_pretrained(Bare(), tmp_path)(x), model(x))


# -- low level ---------------------------------------------------------------------------------------------------------


def test_inject_and_state_dicts():
    base = net()
    assert ours.inject_adapter_in_model(random(), base) is base
    state = ours.get_peft_model_state_dict(base)
    assert set(state) == {f"{path}.lora_{x}.weight" for path in ("lin0", "deep.lin1") for x in "AB"}
    other = ours.inject_adapter_in_model(lora(), net())
    assert same(other(X), net()(X))
    found = ours.set_peft_model_state_dict(other, state)
    assert found == ([], []) and same(other(X), base(X), 0.0)
    lone = {"lin0.lora_A.weight": state["lin0.lora_A.weight"], "lin0.lora_B.weight": state["lin0.lora_B.weight"]}
    found = ours.set_peft_model_state_dict(other, {**lone, "lin9.lora_A.weight": torch.zeros(3, 10)})
    assert found.unexpected_keys == ["lin9.lora_A.weight"] and len(found.missing_keys) == 2
    by_keys = ours.inject_adapter_in_model(lora(target_modules=["nothing"]), net(), state_dict=lone)
    assert [name for name, module in by_keys.named_modules() if isinstance(module, LoraLayer)] == ["lin0"]


def test_the_bases_own_state_dict():
    model = ours.get_peft_model(net(), random(modules_to_save=["head"]))
    state = ours.get_base_model_state_dict(model)
    assert list(state) == list(net().state_dict())
    ours.set_base_model_state_dict(model, {key: tensor * 0 for key, tensor in state.items()})
    assert not model.base_model.model.lin0.weight.any() and model.base_model.model.lin0.lora_A["default"].weight.any()
    with pytest.raises(ValueError, match="lacks"):
        ours.set_base_model_state_dict(model, {})


def test_status():
    model = two()
    found = model.get_model_status()
    assert (found.base_model_type, found.adapter_model_type, found.num_adapter_layers) == ("Net", "LoraModel", 2)
    assert found.active_adapters == ["a"] and found.available_adapters == ["a", "b"] and found.enabled is True
    assert found.requires_grad == {"a": True, "b": False} and found.peft_types == {"a": "LORA", "b": "LORA"}
    assert [layer.name for layer in model.get_layer_status()] == ["model.lin0", "model.deep.lin1"]
    model.base_model.model.lin0.enable_adapters(False)
    assert ours.get_model_status(model).enabled == "irregular"


def test_layers_can_be_scaled_and_switched_one_by_one():
    model = two()
    layer, full = model.base_model.model.lin0, model(X)
    layer.set_scale("a", 0.0)
    layer.enable_adapters(True)
    without = model(X)
    assert layer.scaling["a"] == 0.0 and not same(without, full, 1e-4)
    layer.set_scale("a", 1.0)
    assert same(model(X), full, 0.0)
    with rescale_adapter_scale(model, 0.0):
        assert same(model(X), net()(X), 0.0)
    assert same(model(X), full, 0.0)
    for module in model.modules():  # as diffusers does
        if isinstance(module, BaseTunerLayer):
            module.set_adapter("b")
    assert model.active_adapters == ["b"] and all(".b." in name for name in names_of_trained(model))


def test_hotswap(tmp_path):
    two(random(r=2, lora_alpha=7), random(r=4, target_modules=["lin0"])).save_pretrained(tmp_path)
    model = ours.get_peft_model(net(), random())
    before = ours.get_peft_model(net(), random())(X)
    prepare_model_for_compiled_hotswap(model, target_rank=6)
    assert before.shape == model(X).shape and model.base_model.model.lin0.lora_A["default"].weight.shape == (6, 10)
    tensors = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for name in ("a", "b"):
        hotswap_adapter(model, tmp_path / name, adapter_name="default")
        assert same(model.eval()(X), ours.PeftModel.from_pretrained(net(), tmp_path / name)(X))
    assert [parameter for parameter in model.parameters() if parameter.requires_grad] == tensors


def test_mixed_models_hold_several_methods():
    model = ours.get_peft_model(net(), random(), adapter_name="a", mixed=True)
    model.add_adapter("g", ours.IA3Config(target_modules=["lin0"], feedforward_modules=[], init_ia3_weights=False))
    model.set_adapter(["a", "g"])
    both, base = model.eval()(X), model.base_model.model
    assert {type(config) for config in model.peft_config.values()} == {ours.LoraConfig, ours.IA3Config}
    model.merge_adapter()
    assert same(model(X), both) and base.lin0.merged_adapters == ["a", "g"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    model = ours.get_peft_model(net().to(dtype), lora())
    assert model.base_model.model.lin0.lora_A["default"].weight.dtype == torch.float32
    model.add_adapter("low", lora(), autocast_adapter_dtype=False)
    assert model.base_model.model.lin0.lora_A["low"].weight.dtype == dtype
    ours.cast_mixed_precision_params(model, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {torch.float32}
    prepared = ours.prepare_model_for_kbit_training(net().to(dtype))
    assert {(parameter.dtype, parameter.requires_grad) for parameter in prepared.parameters()} == {
        (torch.float32, False)
    }


def test_starts_are_seeded_by_torch():
    states = []
    for _ in range(2):
        torch.manual_seed(5)
        states.append(ours.get_peft_model_state_dict(ours.get_peft_model(net(), random())))
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "gaussian", "orthogonal"])
def test_starts_that_take_from_the_weight_leave_the_base_and_save_plain(start, tmp_path):
    base = net()
    model = ours.get_peft_model(base, lora(r=2, init_lora_weights=start))
    assert same(model(X), net()(X)) and torch.equal(base.lin0.weight, net().lin0.weight)
    model.base_model.model.lin0.lora_B["default"].weight.data.add_(0.5)
    model.save_pretrained(tmp_path)
    peft = pytest.importorskip("peft")
    assert same(peft.PeftModel.from_pretrained(net(), str(tmp_path))(X), model(X))
    assert same(ours.PeftModel.from_pretrained(net(), tmp_path)(X), model(X))


def test_starts_from_data(tmp_path):
    """EVA gives the layers other ranks; what is saved says which, to PEFT as well."""
    config = lora(r=3, init_lora_weights="eva", eva_config=ours.EvaConfig(rho=2.0))
    model = ours.get_peft_model(net(), config, calibrate=[torch.randn(64, 10)])
    assert same(model(X), net()(X))
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.lora_B["default"].weight.data.add_(0.2)
    model.save_pretrained(tmp_path)
    assert same(ours.PeftModel.from_pretrained(net(), tmp_path)(X), model(X))
    peft = pytest.importorskip("peft")
    assert same(peft.PeftModel.from_pretrained(net(), str(tmp_path))(X), model(X))
    with pytest.raises(ValueError, match="whiten"):
        ours.get_peft_model(net(), lora(init_lora_weights="eva", eva_config=ours.EvaConfig(whiten=True)))


def test_copies_are_independent():
    model = two(random(modules_to_save=["head"]))
    other = copy.deepcopy(model)
    assert same(other(X), model(X), 0.0) and isinstance(other.base_model.model.lin0, LoraLayer)
    other.set_adapter("b")
    assert model.active_adapter == "a" and not same(other(X), model(X), 1e-4)


# -- optimizers --------------------------------------------------------------------------------------------------------


def test_lora_plus_has_a_larger_rate_for_up():
    model = ours.get_peft_model(net(), random())
    optimizer = ours.optimizers.create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16.0)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    layer = model.base_model.model.lin0
    assert rates[id(layer.lora_A["default"].weight)] == 1e-3 and rates[id(layer.lora_B["default"].weight)] == 16e-3


def test_lora_fa_trains_up_alone_towards_the_full_gradient():
    """The change of ``s · dB A`` is nearest to the full gradient: their difference is orthogonal to A's rows."""
    model = ours.get_peft_model(net(), random(target_modules=["lin0"]))
    optimizer = ours.optimizers.create_lorafa_optimizer(model, r=3, lora_alpha=5, lr=1e-3)
    assert names_of_trained(model) == {"base_model.model.lin0.lora_B.default.weight"}
    layer = model.base_model.model.lin0
    weight = layer.weight.requires_grad_(True)
    model(X).square().sum().backward()
    a, b, s = layer.lora_A["default"].weight, layer.lora_B["default"].weight, 5 / 3
    optimizer.step()
    along = optimizer.state[b]["exp_avg"] / 0.1  # the gradient that was stepped along: the first average is a tenth
    left = weight.grad - s * along @ a  # brought to the weight
    assert (left @ a.T).abs().max() < 1e-2 * weight.grad.abs().max()
