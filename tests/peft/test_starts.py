"""Starts out of the weights, tied layers and what PEFT refuses of a LoRA: PEFT's numbers, files and words are right."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import json
import sys
import types
import warnings

import pytest
import torch
from torch import nn

import studio
from studio import peft as ours
from studio.errors import DoesNotFit
from studio.peft.tuners.lora.corda import preprocess_corda
from studio.peft.utils.hotswap import hotswap_adapter

theirs = pytest.importorskip("peft")
X = torch.linspace(-1, 1, 60).view(6, 10)
WHOLE = ("pissa", "olora")


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Linear(10, 12)
        self.two = nn.Linear(12, 3)

    def forward(self, x):
        return self.two(self.one(x).tanh())


class Tied(nn.Module):
    """A language model of one layer whose output layer has the embedding's weight."""

    _tied_weights_keys = {"lm_head.weight": "embed_tokens.weight"}

    def __init__(self):
        super().__init__()
        self.embed_tokens, self.linear = nn.Embedding(11, 6), nn.Linear(6, 6)
        self.lm_head = nn.Linear(6, 11, bias=False)
        self.lm_head.weight = self.embed_tokens.weight
        self.config = {"tie_word_embeddings": True, "model_type": "custom"}

    def forward(self, tokens):
        return self.lm_head(self.linear(self.embed_tokens(tokens)).tanh())

    def get_input_embeddings(self):
        return self.embed_tokens

    def get_output_embeddings(self):
        return self.lm_head


def net(kind=Net):
    torch.manual_seed(0)
    return kind().eval()


def config(package, **fields):
    return package.LoraConfig(**{"r": 3, "lora_alpha": 5, "target_modules": ["one", "two"], **fields})


def trained(package, **fields):
    """A model whose start was moved a little, the same way in both packages."""
    model = package.get_peft_model(net(), config(package, **fields))
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            if parameter.requires_grad:
                parameter += 0.01 * torch.arange(parameter.numel()).view(parameter.shape).cos()
    return model.eval()


def same(a, b, tolerance=1e-5):
    return torch.allclose(a, b, rtol=tolerance, atol=tolerance)


# -- PiSSA, OLoRA, MiCA ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields", [{}, {"rank_pattern": {"one": 2}}, {"alpha_pattern": {"two": 7}}, {"use_rslora": True}]
)
@pytest.mark.parametrize("start", [*WHOLE, "mica"])
def test_a_start_has_pefts_numbers(start, fields):
    here, there = (package.get_peft_model(net(), config(package, init_lora_weights=start, **fields))
                   for package in (ours, theirs))  # fmt: skip
    for name in ("one", "two"):
        mine, peer = (getattr(model.base_model.model, name) for model in (here, there))
        up, other = mine.lora_B["default"].weight, peer.lora_B["default"].weight
        down, another = mine.lora_A["default"].weight, peer.lora_A["default"].weight
        assert same(up @ down, other @ another) and same(down.t() @ down, another.t() @ another)
        assert same(up @ up.t(), other @ other.t(), 1e-4)
        assert same(mine.base_layer.weight, peer.base_layer.weight)
        assert same(mine.get_delta_weight("default"), peer.get_delta_weight("default"))
        assert up.requires_grad == other.requires_grad
    assert same(here(X), there(X)) and same(here(X), net()(X))


@pytest.mark.parametrize("fields", [{}, {"rank_pattern": {"one": 2}}, {"use_rslora": True}])
@pytest.mark.parametrize("start", [*WHOLE, "mica", "gaussian", "orthogonal"])
@pytest.mark.parametrize("writer, reader", [(theirs, ours), (ours, theirs), (ours, ours)])
def test_folders_are_pefts(tmp_path, writer, reader, start, fields):
    fields = {} if start == "orthogonal" else fields
    model = trained(writer, init_lora_weights=start, **{"r": 2, **fields})
    model.save_pretrained(tmp_path)
    stated = json.loads((tmp_path / "adapter_config.json").read_text())
    assert stated["init_lora_weights"] == start and stated["r"] == 2
    read = reader.PeftModel.from_pretrained(net(), tmp_path).eval()
    assert not same(model(X), net()(X), 1e-4) and same(read(X), model(X))


@pytest.mark.parametrize("start", WHOLE)
@pytest.mark.parametrize(
    "fields", [{}, {"rank_pattern": {"one": 2}, "alpha_pattern": {"two": 7}}, {"use_rslora": True}]
)
def test_a_start_can_be_worked_into_a_plain_pair(tmp_path, start, fields):
    model = trained(ours, init_lora_weights=start, **fields)
    model.save_pretrained(tmp_path / "asked", path_initial_model_for_weight_conversion="any")
    model.peft_config["default"].init_lora_weights = True  # PEFT's scripts save what the start was this way
    model.save_pretrained(tmp_path / "named")
    for folder in ("asked", "named"):
        assert json.loads((tmp_path / folder / "adapter_config.json").read_text())["init_lora_weights"] is True
        assert same(theirs.PeftModel.from_pretrained(net(), tmp_path / folder)(X), model(X))
        base = net()
        studio.load(base, tmp_path / folder)
        assert same(base(X), model(X))


@pytest.mark.parametrize("start", [*WHOLE, "mica"])
def test_a_checkpoint_fills_the_adapter_and_is_trained_on(tmp_path, start):
    model = trained(ours, init_lora_weights=start)
    model.save_pretrained(tmp_path)
    fresh = ours.get_peft_model(net(), config(ours, init_lora_weights=start)).eval()
    fresh.load_adapter(tmp_path, "default", is_trainable=True)
    assert same(fresh(X), model(X))
    again = ours.PeftModel.from_pretrained(net(), tmp_path, is_trainable=True)
    wanted = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, parameter in again.named_parameters() if parameter.requires_grad} == wanted
    other = ours.get_peft_model(net(), config(ours, init_lora_weights=start)).eval()
    ours.set_peft_model_state_dict(other, ours.get_peft_model_state_dict(model))
    assert same(other(X), model(X))


def test_another_start_is_not_filled_in(tmp_path):
    trained(ours, init_lora_weights="pissa").save_pretrained(tmp_path)
    model = ours.get_peft_model(net(), config(ours, init_lora_weights="olora"))
    with pytest.raises(DoesNotFit, match="pissa"):
        model.load_adapter(tmp_path, "default")


def test_a_start_that_was_drawn_is_said_to_be_another(tmp_path):
    trained(theirs, init_lora_weights="pissa_niter_16").save_pretrained(tmp_path)
    with pytest.warns(ours.PeftWarning, match="drawn at random"):
        ours.PeftModel.from_pretrained(net(), tmp_path)


def test_what_changes_the_base_by_other_means_is_refused(tmp_path):
    trained(theirs).save_pretrained(tmp_path)
    stated = json.loads((tmp_path / "adapter_config.json").read_text())
    stated |= {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(stated))
    with pytest.raises(ValueError, match="loftq"):
        ours.PeftModel.from_pretrained(net(), tmp_path)


def test_a_hotswap_takes_a_start_with_it(tmp_path):
    model = trained(theirs, init_lora_weights="pissa", r=2)
    model.save_pretrained(tmp_path / "pissa")
    plain = trained(ours, r=3)
    plain.save_pretrained(tmp_path / "plain")
    before = plain(X)
    hotswap_adapter(plain, tmp_path / "pissa")  # of rank 4 with its start, so that the adapter widens
    assert same(plain(X), model(X))
    hotswap_adapter(plain, tmp_path / "plain")
    assert same(plain(X), before)


def test_the_minor_directions_alone_are_frozen():
    model = ours.get_peft_model(net(), config(ours, init_lora_weights="mica"))
    held = model.base_model.model.one.lora_B["default"].weight.clone()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    for _ in range(2):
        model(X).square().sum().backward()
        optimizer.step()
    assert torch.equal(model.base_model.model.one.lora_B["default"].weight, held)
    assert model.base_model.model.one.lora_A["default"].weight.abs().sum() > 0
    assert model.base_model.model.one.frozen_peft_weight_names == {"default": {"lora_B"}}
    with pytest.raises(ValueError, match="requires `r` <= min"):
        ours.get_peft_model(net(), config(ours, init_lora_weights="mica", r=11))


# -- CorDA -------------------------------------------------------------------------------------------------------------


def preparing(package):
    """A package's own function; PEFT's module asks for a decorator of ``attrs``, which the standard library has too."""
    if package is ours:
        return preprocess_corda
    sys.modules.setdefault("attr", types.SimpleNamespace(dataclass=dataclasses.dataclass))
    return importlib.import_module("peft.tuners.lora.corda").preprocess_corda


def preprocessed(package, run, method="ipm", **fields):
    prepare = preparing(package)
    parts = importlib.import_module(f"{package.__name__}.tuners.lora.config")
    model, small = net(), parts.CordaConfig(corda_method=method, **fields)
    asked = config(package, init_lora_weights="corda", corda_config=small)
    prepare(model, asked, run_model=(lambda: [model(one) for one in run]) if run else None)
    return model, asked


@pytest.mark.parametrize("method", ["ipm", "kpm"])
def test_corda_has_pefts_numbers(method):
    runs = [X, X.roll(1, 0).square(), X.cos()]
    here, there = (package.get_peft_model(*preprocessed(package, runs, method)) for package in (ours, theirs))
    for name in ("one", "two"):
        mine, peer = (getattr(model.base_model.model, name) for model in (here, there))
        pairs = [layer.lora_B["default"].weight @ layer.lora_A["default"].weight for layer in (mine, peer)]
        assert same(*pairs, 1e-4)
        assert same(*(layer.lora_A["default"].weight.norm(dim=1) for layer in (mine, peer)), 1e-4)
        assert same(mine.base_layer.weight, peer.base_layer.weight, 1e-4)
    assert same(here(X), net()(X), 1e-4)


@pytest.mark.parametrize("field", ["cache_file", "covariance_file"])
@pytest.mark.parametrize("writer, reader", [(theirs, ours), (ours, theirs), (ours, ours)])
def test_files_of_corda_are_pefts(tmp_path, field, writer, reader):
    files = {field: str(tmp_path / "file.pt")}
    first = writer.get_peft_model(*preprocessed(writer, [X], **files))
    second = reader.get_peft_model(*preprocessed(reader, None, **files))
    one, other = (model.base_model.model.one for model in (first, second))
    assert same(*(layer.lora_B["default"].weight @ layer.lora_A["default"].weight for layer in (one, other)))


def test_corda_is_loaded_onto_a_prepared_base_and_else_refused(tmp_path):
    model, asked = preprocessed(ours, [X])
    prepared = copy.deepcopy(model)
    adapted = ours.get_peft_model(model, asked)
    assert not hasattr(model.one, "eigens")
    with torch.no_grad():
        adapted.base_model.model.one.lora_B["default"].weight.mul_(1.5)
    adapted.save_pretrained(tmp_path)
    assert same(ours.PeftModel.from_pretrained(prepared, tmp_path)(X), adapted(X))
    with pytest.raises(ValueError, match="please run `preprocess_corda` first"):
        ours.PeftModel.from_pretrained(net(), tmp_path)
    with pytest.raises(ValueError, match="please run `preprocess_corda` first"):
        ours.get_peft_model(net(), asked)


def test_corda_from_batches_is_saved_as_a_plain_pair(tmp_path):
    asked = config(ours, init_lora_weights="corda", corda_config=ours.CordaConfig())
    model = ours.get_peft_model(net(), asked, calibrate=[X])
    model.save_pretrained(tmp_path)
    assert same(theirs.PeftModel.from_pretrained(net(), tmp_path)(X), model(X))


@pytest.mark.parametrize(
    "change, said",
    [
        ({"run": None}, "run_model must be specified"),
        ({"run": [X * float("nan")]}, "Invalid value found in input"),
        ({"run": [X], "method": "ppm"}, "Invalid corda_method"),
    ],
)
def test_corda_says_what_is_wrong(change, said):
    with pytest.raises(ValueError, match=said):
        preprocessed(ours, **change)


@pytest.mark.parametrize("content", [b"", b"no file", torch.zeros(3)])
def test_a_damaged_file_of_corda_is_told(tmp_path, content):
    file = tmp_path / "file.pt"
    torch.save({"one": content}, file) if isinstance(content, torch.Tensor) else file.write_bytes(content or b"x")
    with pytest.raises(studio.errors.BadFile, match=r"file\.pt"):
        preprocessed(ours, None, covariance_file=str(file))


# -- tied layers -------------------------------------------------------------------------------------------------------

TOKENS = torch.tensor([[1, 2, 3, 4]])
NAMES = [{"target_modules": ["linear", "embed_tokens"]}, {"target_modules": ["linear", "lm_head"]},
         {"target_modules": ["linear"], "modules_to_save": ["embed_tokens"]},
         {"target_modules": ["linear"], "modules_to_save": ["lm_head"]}]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("fields", NAMES)
def test_tied_layers_stay_tied_as_in_peft(tmp_path, fields):
    models = []
    for package in (ours, theirs):
        model = package.get_peft_model(net(Tied), package.LoraConfig(r=2, ensure_weight_tying=True, **fields))
        with torch.no_grad():
            for name, parameter in sorted(model.named_parameters()):
                if parameter.requires_grad and "lm_head" not in name:
                    parameter.copy_(0.1 * torch.arange(parameter.numel()).view(parameter.shape).cos())
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(2):
            optimizer.zero_grad()
            model(TOKENS).square().sum().backward()
            optimizer.step()
        models.append(model)
    here, there = models
    assert same(here(TOKENS), there(TOKENS)) and not same(here(TOKENS), net(Tied)(TOKENS), 1e-3)
    for writer, reader in ((here, ours), (there, ours), (here, theirs)):
        writer.save_pretrained(tmp_path)
        assert same(reader.PeftModel.from_pretrained(net(Tied), tmp_path)(TOKENS), writer(TOKENS))
    if "modules_to_save" in fields:
        merged = here.merge_and_unload()
        assert merged.lm_head.weight is merged.embed_tokens.weight


@pytest.mark.parametrize("fields", [{"rank_pattern": {"lm_head": 3}}, {"init_lora_weights": "pissa"}])
def test_what_tied_layers_cannot_share_is_refused(fields):
    model = net(Tied)
    with pytest.raises(ValueError, match="ensure_weight_tying"):
        ours.get_peft_model(
            model, ours.LoraConfig(r=2, ensure_weight_tying=True, target_modules=["embed_tokens"], **fields)
        )
    assert not hasattr(model.lm_head, "adapters")


# -- PEFT's words ------------------------------------------------------------------------------------------------------


def said_by(package, make):
    """The kind of what a package raises, or what it warns of, and its text."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        try:
            make(package)
        except (ValueError, TypeError, NotImplementedError) as error:
            kinds = (TypeError, NotImplementedError, ValueError)
            return next(kind for kind in kinds if isinstance(error, kind)), str(error)
    return UserWarning, "\n".join(str(one.message) for one in found)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"target_parameters": "one.weight"}, "must be a list of strings or None"),
        ({"lora_bias": True, "init_lora_weights": "gaussian"}, "The argument lora_bias=True is only supported with"),
        ({"lora_bias": True, "init_lora_weights": "olora"}, "The argument lora_bias=True is only supported with"),
        ({"lora_bias": True, "use_dora": True}, "lora_bias=True is not supported for DoRA"),
        ({"loftq_config": {"loftq_bits": 4}}, "`loftq_config` specified but will be ignored"),
        ({"use_rslora": True, "alpha_pattern": {"one": 2}, "init_lora_weights": "pissa"}, "you won't be able to pass"),
        ({"r": 3, "init_lora_weights": "orthogonal"}, "requires the LoRA rank to be even, got 3 instead"),
        ({"bias": "some"}, "Requested bias: some, is not implemented."),
        ({"target_modules": [], "target_parameters": ["one.wait"]}, "No `target_modules` passed but also no"),
        ({"target_parameters": ["one.weight"]}, "Trying to wrap an `nn.Parameter` of layer 'one' of type Linear"),
        ({"base_model_name_or_path": "another"}, "was renamed from 'another' to 'None'"),
        ({"adapter_name": "lora"}, "should not be contained in the prefix 'lora_'"),
    ],
)
def test_what_peft_says_is_said(fields, words):
    name = fields.get("adapter_name", "default")
    fields = {key: one for key, one in fields.items() if key != "adapter_name"}

    def make(package):
        package.get_peft_model(net(), config(package, **fields), adapter_name=name)

    (kind, text), (other, peers) = said_by(ours, make), said_by(theirs, make)
    assert kind is other and words in text and words in peers


@pytest.mark.parametrize("start, words", [("eva", "Using default EVA config"), ("corda", "Using default CorDA config")])
def test_a_start_without_its_config_takes_the_usual_one(start, words):
    for package in (ours, theirs):
        with pytest.warns(UserWarning, match=words):
            assert getattr(config(package, init_lora_weights=start), f"{start}_config") is not None


@pytest.mark.parametrize("fields, words", [({"rho": 0.5}, "`rho` must be"), ({"tau": 1.5}, "`tau` must be between")])
def test_a_small_config_is_checked(fields, words):
    for package in (ours, theirs):
        with pytest.raises(ValueError, match=words):
            package.EvaConfig(**fields)


def test_names_that_layers_once_had_are_read(tmp_path):
    trained(ours).save_pretrained(tmp_path)
    model = nn.Sequential()
    model.now = net()
    model._checkpoint_conversion_mapping = {"^one": "now.one", "^two": "now.two"}
    model.forward = model.now.forward
    assert same(ours.PeftModel.from_pretrained(model, tmp_path)(X), trained(ours)(X))


@pytest.mark.parametrize("fields", [{}, {"decompose_both": True, "r": 1}, {"r": 1}])
def test_lycoris_start_of_lokr_begins_with_the_second_part(fields):
    model = ours.get_peft_model(net(), ours.LoKrConfig(target_modules=["one"], init_weights="lycoris", **fields))
    peer = theirs.get_peft_model(net(), theirs.LoKrConfig(target_modules=["one"], init_weights="lycoris", **fields))
    zero = [{name.rpartition("lokr_")[2] for name, one in both.named_parameters() if "lokr" in name and not one.any()}
            for both in (model, peer)]  # fmt: skip
    assert zero[0] == zero[1] and zero[0] and same(model(X), net()(X))


@pytest.mark.parametrize("start", [True, "pissa"])
def test_what_was_gathered_is_saved_in_place_of_what_is_here(tmp_path, start):
    model = trained(ours, init_lora_weights=start)
    gathered = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wanted = model(X)
    with torch.no_grad():
        model.base_model.model.one.lora_B["default"].weight.zero_()
    model.save_pretrained(tmp_path, state_dict=gathered)
    assert same(ours.PeftModel.from_pretrained(net(), tmp_path)(X), wanted)
    name = next(name for name in gathered if "lora_A" in name)
    with pytest.raises(ValueError, match="is to be saved"):
        model.save_pretrained(tmp_path, state_dict={**gathered, name: gathered[name][:1]})


@pytest.mark.parametrize("start", [True, "pissa", "mica"])
@pytest.mark.parametrize("way", ["dict", "folder"])
def test_an_adapter_that_waits_takes_what_a_file_has(tmp_path, start, way):
    model = trained(ours, init_lora_weights=start)
    model.save_pretrained(tmp_path)
    empty = ours.get_peft_model(net(), config(ours, init_lora_weights=start), low_cpu_mem_usage=True).eval()
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert {one.device.type for name, one in empty.named_parameters() if "lora_" in name} == {"meta"}
    with pytest.raises(ValueError, match="waits for its tensors"):
        empty(X)
    if way == "dict":
        ours.set_peft_model_state_dict(empty, ours.get_peft_model_state_dict(model), low_cpu_mem_usage=True)
    else:
        empty.load_adapter(tmp_path, "default", is_trainable=True)
    assert same(empty(X), model(X))
    assert {name: parameter.requires_grad for name, parameter in empty.named_parameters()} == wanted
    assert not empty.unload()._forward_pre_hooks
