"""VeRA: the shared matrices, their owner, and files with and without them; the oracle for the numbers is PEFT."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import studio
from studio.adapters import install
from studio.adapters.methods.vera import VeRAAdapter
from studio.errors import BadConfig, DoesNotFit

TARGETS = ("0", "2", "3")
X = torch.linspace(-1, 1, 24).view(3, 8)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 6), nn.Linear(6, 10))


def adapted(**settings: object) -> nn.Sequential:
    model = net()
    studio.attach(model, studio.VeRA(rank=5, targets=TARGETS, **settings))
    shake(model)
    return model


def shake(model: nn.Module, name: str = "default", seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in studio.state(model, name).values():
            if tensor.requires_grad:
                tensor += 0.3 * torch.randn(tensor.shape, generator=generator).to(tensor)


def owned(model: nn.Module, name: str = "default") -> list[str]:
    return [key for key in studio.state(model, name) if key.endswith((".A", ".B"))]


@pytest.mark.parametrize(("rank", "key"), [(5, 0), (64, 0), (5, 1234567890)])
def test_the_matrices_are_those_of_peft_bit_for_bit(rank: int, key: int) -> None:
    peft = pytest.importorskip("peft")
    config = peft.VeraConfig(r=rank, projection_prng_key=key, target_modules=list(TARGETS))
    theirs = peft.get_peft_model(net(), config).base_model
    model = net()
    studio.attach(model, studio.VeRA(rank=rank, key=key, targets=TARGETS))
    ours = studio.state(model)
    assert owned(model) == ["0.A", "0.B"]
    assert torch.equal(ours["0.A"], theirs.vera_A["default"]) and ours["0.A"].shape == (rank, 12)
    assert torch.equal(ours["0.B"], theirs.vera_B["default"]) and ours["0.B"].shape == (12, rank)


def test_what_is_trained_is_two_vectors_per_layer() -> None:
    model = net()
    report = studio.attach(model, studio.VeRA(rank=5, targets=TARGETS))
    assert report.parameters == (12 + 5) + (6 + 5) + (10 + 5)
    model(X).sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {
        f"{path}.adapters.default.lambda_{letter}" for path in TARGETS for letter in "bd"
    }


def test_copies_pickles_and_casts_keep_the_owner() -> None:
    model = adapted()
    wanted = model(X)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(X), wanted)
        adapters = [layer.adapters.get("default") for layer in (twin[0], twin[2], twin[3])]
        assert all(isinstance(one, VeRAAdapter) and one.owner is adapters[0] for one in adapters)
        with torch.no_grad():
            adapters[0]._buffers["B"].zero_()  # of the twin, not of the model
        assert torch.equal(twin(X), net()(X)) and torch.equal(model(X), wanted)
    part = copy.deepcopy(model[3])  # a layer by itself takes the matrices along
    hidden = model[2](torch.tanh(model[0](X)))
    assert torch.equal(part(hidden), model[3](hidden))
    double = copy.deepcopy(model).double()
    assert double(X.double()).dtype == torch.float64
    assert torch.allclose(double(X.double()).float(), wanted, atol=1e-5)
    assert model.to(torch.bfloat16)(X.bfloat16()).dtype == torch.bfloat16


def test_a_state_dict_holds_the_matrices_once_and_goes_back_in() -> None:
    model = adapted()
    state = model.state_dict()
    assert [key for key in state if key.endswith((".A", ".B"))] == ["0.adapters.default.A", "0.adapters.default.B"]
    other = net()
    studio.attach(other, studio.VeRA(rank=5, key=9, targets=TARGETS))
    assert not torch.equal(other(X), model(X))
    other.load_state_dict(state)
    assert torch.equal(other(X), model(X))
    file = io.BytesIO()
    torch.save(state, file)


def test_two_adapters_with_other_keys_act_together() -> None:
    model, alone = net(), []
    for name, key in (("one", 1), ("two", 2)):
        studio.attach(model, studio.VeRA(rank=5, key=key, targets=TARGETS), name=name)
        shake(model, name, key)
        with studio.blended(model, {name: 1.0}):
            alone.append(model[0](X) - net()[0](X))
    studio.blend(model, {"one": 1.0, "two": 1.0})
    assert torch.allclose(model[0](X) - net()[0](X), alone[0] + alone[1], atol=1e-5)
    studio.detach(model, "one")
    assert torch.allclose(model[0](X) - net()[0](X), alone[1], atol=1e-5)
    studio.detach(model)
    assert torch.equal(model(X), net()(X)) and list(model.state_dict()) == list(net().state_dict())


@pytest.mark.parametrize("format", ["peft", "diffusers"])
@pytest.mark.parametrize("kept", [True, False])
def test_files_with_and_without_the_matrices(tmp_path, format, kept) -> None:
    model = adapted(key=7, save_projection=kept)
    file = studio.save(model, tmp_path / ("a" if format == "peft" else "a.safetensors"), format=format)
    keys = set(studio.inspect(file).tensors)
    start = "base_model." if format == "peft" else ""
    assert ({f"{start}vera_A", f"{start}vera_B"} <= keys) == kept and len(keys) == (8 if kept else 6)
    base = net()
    report = studio.load(base, file)
    assert set(report.applied) == keys and bool(report.notes) != kept
    assert torch.equal(base(X), model(X)) and owned(base) == ["0.A", "0.B"]


def test_matrices_that_cannot_be_drawn_anew_are_noticed(tmp_path) -> None:
    model = adapted(save_projection=False)
    file = studio.save(model, tmp_path / "a.safetensors")
    narrow = net()
    narrow[2] = nn.Linear(12, 7)  # this layer does not fit any more, and the others would get other matrices
    with pytest.raises(DoesNotFit, match="leaves out A and B|not the ones it was trained with|all of its layers"):
        studio.load(narrow, file, allow_partial=True)
    assert studio.adapters(narrow) == {}
    config = studio.adapters(model)["default"].config
    tensors = {path: {} for path in TARGETS}
    for key, tensor in studio.state(model).items():
        if not key.endswith((".A", ".B")):
            tensors[key[0]][key[2:]] = tensor
    forged = studio.VeRA(rank=5, key=config.key + 1, targets=TARGETS, checksums=("0" * 32,))
    with pytest.raises(DoesNotFit, match="cannot be drawn anew from key=1"):
        install(net(), forged, tensors, name="a")


def test_peft_folders_without_the_matrices(tmp_path) -> None:
    peft = pytest.importorskip("peft")
    config = peft.VeraConfig(r=5, projection_prng_key=3, save_projection=False, target_modules=list(TARGETS))
    theirs = peft.get_peft_model(net(), config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter += torch.randn_like(parameter)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = net()
    report = studio.load(ours, tmp_path / "theirs")
    assert "drawn anew" in report.notes[0]
    assert torch.allclose(ours(X), theirs(X), atol=1e-5)
    folder = studio.save(ours, tmp_path / "ours", format="peft")
    with pytest.warns(UserWarning, match="PRNG"):
        again = peft.PeftModel.from_pretrained(net(), folder)
    assert torch.allclose(again(X), theirs(X), atol=1e-5)


def test_gpt2_layers_in_both_directions(tmp_path) -> None:
    peft = pytest.importorskip("peft")
    from transformers.pytorch_utils import Conv1D

    def gpt() -> nn.Module:
        torch.manual_seed(1)
        return nn.Sequential(Conv1D(6, 4), nn.Linear(6, 5))

    model, x = gpt(), torch.randn(2, 4)
    studio.attach(model, studio.VeRA(rank=3, targets=("0",)))
    shake(model)
    folder = studio.save(model, tmp_path / "ours", format="peft")
    theirs = peft.PeftModel.from_pretrained(gpt(), folder)
    assert torch.allclose(theirs(x), model(x), atol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    base = gpt()
    studio.load(base, tmp_path / "theirs")
    assert torch.allclose(base(x), model(x), atol=1e-5)


def test_dropout_acts_in_training_alone() -> None:
    model, base = adapted(dropout=0.5).eval(), net()[0](X)
    wanted = model[0](X)
    assert torch.equal(model[0](X), wanted)
    model.train()
    torch.manual_seed(0)
    drawn = torch.stack([(model[0](X) - base).detach() for _ in range(400)])
    assert not torch.equal(drawn[0], drawn[1])
    error = drawn.mean(0) - (wanted - base)  # what is kept makes up for what is dropped
    assert error.abs().max() < 4 * drawn.std(0).max() / len(drawn) ** 0.5


@pytest.mark.parametrize(
    "settings",
    [{"rank": 0}, {"rank": 2.5}, {"key": -1}, {"key": "a"}, {"dropout": 1.0}, {"d_initial": float("nan")}],
)
def test_impossible_settings(settings) -> None:
    with pytest.raises(BadConfig, match=next(iter(settings))):
        studio.VeRA(**settings)


def test_shared_tensors_that_do_not_reach_are_refused(tmp_path) -> None:
    model = adapted()
    tensors = {path: {} for path in TARGETS}
    for key, tensor in studio.state(model).items():
        tensors[key[0]][key[2:]] = tensor.detach().clone()
    tensors["0"]["A"] = tensors["0"]["A"][:, :7]
    with pytest.raises(DoesNotFit, match="needs more than the shared"):
        install(net(), studio.VeRA(rank=5, targets=TARGETS), tensors, name="a")
