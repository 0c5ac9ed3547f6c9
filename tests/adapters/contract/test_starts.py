"""Starts of LoRA from the weight and from data, against float64, against PEFT, and in a training run."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import sys
import types

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import studio
from studio.adapters import LoRA, adapters, attach, detach, state
from studio.adapters.contract.calibration import Components, Covariance
from studio.errors import BadConfig, DoesNotFit, UnsupportedLayer


class Net(nn.Module):
    """One of every kind of layer whose inputs are numbers, and an embedding before them."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(10, 12)
        self.lin = nn.Linear(12, 16)
        self.gpt = Conv1D(8, 16)
        self.mha = nn.MultiheadAttention(8, 2, batch_first=True)
        self.conv = nn.Conv2d(
            4, 8, (3, 2), stride=(1, 2), padding=2, dilation=(2, 1), groups=2, padding_mode="circular"
        )
        self.unused = nn.Linear(4, 4)

    def forward(self, ids: Tensor, image: Tensor) -> Tensor:
        x = self.gpt(torch.tanh(self.lin(self.emb(ids))))
        x = self.mha(x, x, x, need_weights=False)[0]
        return torch.cat([x.flatten(1), self.conv(image).flatten(1)], dim=1)


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    model = Net().eval()
    nn.init.normal_(model.gpt.bias)
    return model


def batch(seed: int, rows: int = 24) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 10, (rows, 5), generator=generator), torch.randn(rows, 4, 6, 7, generator=generator)


BATCHES = [batch(seed) for seed in range(3)]
SITES = ("lin", "gpt", "mha", "conv")


def seen_by_hand(model: Net, name: str) -> Tensor:
    """All inputs of a layer in float64, found without the code under test; patches by torch's own ``unfold``."""
    inputs = []
    for ids, image in BATCHES:
        with torch.no_grad():
            lin = model.emb(ids)
            gpt = torch.tanh(model.lin(lin))
            mha = model.gpt(gpt)
            padded = torch.nn.functional.pad(image, (2, 2, 2, 2), mode="circular")
            groups = padded.unflatten(1, (2, 2)).flatten(0, 1)
            patches = torch.nn.functional.unfold(groups, (3, 2), dilation=(2, 1), stride=(1, 2)).mT
        inputs.append({"lin": lin, "gpt": gpt, "mha": mha, "conv": patches}[name].flatten(0, 1).double())
    return torch.cat(inputs)


def projector(rows: Tensor) -> Tensor:
    """The projection on the space of some rows: what a basis is, whatever its signs and order."""
    q = torch.linalg.qr(rows.double().t()).Q
    return q @ q.t()


def relative(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


# -- what is measured ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SITES)
def test_eva_starts_with_the_principal_directions_of_all_inputs(name: str) -> None:
    model = net()
    attach(model, LoRA(rank=3, init="eva", rho=1, targets=(name,), exclude=("out_proj",)), calibrate=BATCHES)
    inputs = seen_by_hand(model, name)
    expected = torch.linalg.svd(inputs - inputs.mean(0)).Vh[:3]
    down = state(model)[f"{name}.down"].detach().flatten(1).double()
    assert relative((down * expected).sum(1).abs(), torch.ones(3, dtype=torch.float64)) <= 1e-4
    assert relative(down @ down.t(), torch.eye(3, dtype=torch.float64)) <= 1e-5
    assert not state(model)[f"{name}.up"].any()


def test_incremental_components_are_those_of_everything_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 20, generator=generator) * torch.linspace(3, 0.1, 20) + 5
    exact, sketch = Components(kept=20), Components(kept=8)
    for part in x.split(700):
        exact.take(part)
        sketch.take(part)
    _, s, vh = torch.linalg.svd(x.double() - x.double().mean(0), full_matrices=False)
    assert torch.allclose(exact.ratios().double(), s.square() / s.square().sum(), rtol=1e-4)
    assert relative(projector(exact.directions(6, "")), projector(vh[:6])) <= 1e-3
    # what is thrown away between blocks leaves the first directions nearly as they are
    assert torch.allclose(sketch.ratios()[:3].double(), exact.ratios()[:3].double(), rtol=0.02)
    assert relative(projector(sketch.directions(2, "")), projector(vh[:2])) <= 0.1


@pytest.mark.parametrize("mode", ["corda", "corda-kpm"])
@pytest.mark.parametrize("name", SITES)
def test_corda_takes_the_directions_of_weight_times_covariance(name: str, mode: str) -> None:
    model = net()
    attach(model, LoRA(rank=3, alpha=1.5, init=mode, targets=(name,), exclude=("out_proj",)), calibrate=BATCHES)
    inputs = seen_by_hand(model, name)
    layer = model.get_submodule(name)
    weight = layer.in_proj_weight if name == "mha" else layer.weight
    weight = (weight.t() if name == "gpt" else weight.flatten(1)).detach().double()
    covariance = inputs.t() @ inputs / len(inputs)
    covariance = covariance + 0.01 * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)
    u, s, vh = torch.linalg.svd(weight @ covariance, full_matrices=False)
    part = slice(3) if mode == "corda" else slice(len(s) - 3, None)
    expected = u[:, part] * s[part] @ vh[part] @ covariance.inverse()
    tensors = {key: tensor.detach() for key, tensor in state(model).items()}
    up, down = tensors[f"{name}.up0"].double(), tensors[f"{name}.down0"].flatten(1).double()
    assert relative(0.5 * up @ down, expected) <= 1e-3  # the scale is alpha / rank
    # the singular values of W C are shared equally, with C of mean diagonal one
    assert relative(0.5 * up.norm(dim=0).square(), s[part] / inputs.square().mean()) <= 1e-3
    for part_name in ("up", "down"):
        assert torch.equal(tensors[f"{name}.{part_name}"], tensors[f"{name}.{part_name}0"])


# -- against PEFT --------------------------------------------------------------------------------------------------


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.emb = nn.Embedding(40, 16)
        self.a = nn.Linear(16, 24)
        self.b = nn.Linear(24, 16)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(self.emb(input_ids))))


def test_eva_is_that_of_peft() -> None:
    peft = pytest.importorskip("peft")
    from peft.tuners.lora.eva import initialize_lora_eva_weights

    ids = torch.randint(0, 40, (16, 20), generator=torch.Generator().manual_seed(1))
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["a", "b"], init_lora_weights="eva", eva_config=peft.EvaConfig(rho=2.0)
    )
    theirs = peft.get_peft_model(Text(), config)
    initialize_lora_eva_weights(theirs, [{"input_ids": ids}], show_progress_bar=False)
    ours = Text()
    attach(ours, LoRA(rank=4, alpha=6, init="eva", targets=("a", "b")), calibrate=[{"input_ids": ids}])
    for name in ("a", "b"):
        layer = theirs.base_model.model.get_submodule(name)
        down = state(ours)[f"{name}.down"].detach()
        wanted = layer.lora_A["default"].weight.detach()
        assert down.shape == wanted.shape  # the same redistribution of ranks
        # PEFT's SVD is a randomised one, run until two turns agree to a cosine of 0.99
        assert (down * wanted).sum(1).min() >= 0.99
        settings = adapters(ours)["default"].config
        assert settings.scale_at(name) == pytest.approx(layer.scaling["default"])


@pytest.mark.parametrize(("ours", "theirs"), [("corda", "ipm"), ("corda-kpm", "kpm")])
def test_corda_is_that_of_peft(ours: str, theirs: str, monkeypatch) -> None:
    peft = pytest.importorskip("peft")
    if importlib.util.find_spec("attr") is None:  # PEFT's module takes its decorator from there, without requiring it
        monkeypatch.setitem(sys.modules, "attr", types.SimpleNamespace(dataclass=dataclasses.dataclass))
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda

    ids = torch.randint(0, 40, (1, 300), generator=torch.Generator().manual_seed(1))
    model = Text()
    config = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=["a", "b"], init_lora_weights="corda",
        corda_config=CordaConfig(corda_method=theirs),
    )  # fmt: skip
    preprocess_corda(model, config, run_model=lambda: model(ids))
    layers = peft.get_peft_model(model, config).base_model.model
    mine = Text()
    attach(mine, LoRA(rank=4, alpha=6, init=ours, targets=("a", "b")), calibrate=[ids])
    for name in ("a", "b"):
        up, down = (state(mine)[f"{name}.{part}"].detach() for part in ("up", "down"))
        layer = layers.get_submodule(name)
        b, a = (getattr(layer, part)["default"].weight.detach() for part in ("lora_B", "lora_A"))
        assert relative(up @ down, b @ a) <= 1e-3
        # PEFT divides the inputs by their largest entry; here the covariance has a mean diagonal of one. Only the
        # balance of the two factors depends on it.
        balance = float(b.norm() / up.norm())
        assert relative(balance * up.norm(dim=0), b.norm(dim=0)) <= 1e-3


def test_fast_pissa_is_nearly_pissa_and_one_seed_gives_one_start() -> None:
    torch.manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(size, 64)).Q for size in (96, 80))
    layer = nn.Linear(80, 96)
    with torch.no_grad():
        layer.weight.copy_(u * torch.exp(-torch.arange(64) / 4) @ v.t())

    def product(**fields: object) -> Tensor:
        model = nn.Sequential(copy.deepcopy(layer))
        torch.manual_seed(int(torch.randint(1000, ())))  # whatever the global generator says
        attach(model, LoRA(rank=8, targets=("0",), **fields))
        return (state(model)["0.up"] @ state(model)["0.down"]).detach()

    exact = product(init="pissa")
    errors = [relative(product(init="pissa-fast", iterations=count), exact) for count in (0, 1, 4)]
    assert errors[0] > errors[1] > errors[2] and errors[2] <= 1e-4
    first = product(init="pissa-fast")
    assert torch.equal(first, product(init="pissa-fast")) and relative(first, exact) <= 1e-3


# -- ranks from data -----------------------------------------------------------------------------------------------


class Two(nn.Module):
    """A layer whose inputs vary in one direction above all, and one whose inputs vary in all alike."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.wide = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(x * torch.logspace(0, -4, 16)) + self.wide(x)


@pytest.mark.parametrize("rho", [1.0, 1.5, 2.0, 4.0])
def test_ranks_move_within_the_budget_and_scales_stay(rho: float) -> None:
    model, x = Two(), torch.randn(400, 16, generator=torch.Generator().manual_seed(0))
    attach(model, LoRA(rank=4, alpha=6, init="eva", rho=rho, targets=("narrow", "wide")), calibrate=[x])
    config = adapters(model)["default"].config
    ranks = {name: len(state(model)[f"{name}.down"]) for name in ("narrow", "wide")}
    # the shares of variance, sorted, say who gets the eight ranks
    shares = []
    for name, inputs in (("narrow", x * torch.logspace(0, -4, 16)), ("wide", x)):
        s = torch.linalg.svdvals((inputs - inputs.mean(0)).double()).square()
        shares += [(float(share), name) for share in (s / s.sum())[: round(4 * rho)]]
    chosen = [name for _, name in sorted(shares, reverse=True)[:8]]
    assert ranks == {name: chosen.count(name) for name in ranks} and sum(ranks.values()) == 8
    assert all(config.scale_at(name) == pytest.approx(6 / 4) for name in ranks)
    assert (ranks["wide"] > 4) == (rho > 1)
    y = model(x)
    assert torch.equal(y, Two.forward(model, x))


def test_a_layer_that_gets_no_rank_is_left_out_and_named_so(tmp_path) -> None:
    class Flat(Two):
        """One layer sees two directions that explain a half each, the other sixteen that explain little each."""

        def forward(self, x: Tensor) -> Tensor:
            return self.narrow(x[:, :2].repeat(1, 8)) + self.wide(x)

    torch.manual_seed(0)
    model, x = Flat(), torch.randn(400, 16, generator=torch.Generator().manual_seed(0))
    bare = copy.deepcopy(model)
    report = attach(model, LoRA(rank=1, init="eva", rho=2, targets=("narrow", "wide")), calibrate=[x])
    assert report.sites == ("narrow",) and len(state(model)["narrow.down"]) == 2 and report.parameters == 2 * 32
    assert {key.rpartition(".")[0] for key in state(model)} == {"narrow"}
    assert "adapters" not in model.wide._modules
    with torch.no_grad():
        for tensor in state(model).values():
            tensor += 0.1
    file = studio.save(model, tmp_path / "a.safetensors")
    studio.load(bare, file)
    assert torch.equal(bare(x), model(x))


# -- what is refused -----------------------------------------------------------------------------------------------


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> None:
    assert list(model.state_dict()) == list(before) and not adapters(model)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert not any(part._forward_pre_hooks or part._forward_hooks for part in model.modules())
    assert all(part.training == (name == "lin") for name, part in model.named_modules())


@pytest.mark.parametrize(
    ("fields", "calibrate", "error", "says"),
    [
        ({"targets": ("lin", "unused")}, BATCHES, DoesNotFit, "no data reached unused"),
        ({"targets": ("mha",)}, BATCHES, DoesNotFit, "no data reached mha.out_proj"),
        ({"targets": ("emb", "lin")}, BATCHES, UnsupportedLayer, "inputs of emb are token ids"),
        ({"targets": ("lin",)}, None, BadConfig, "starts from data: pass calibrate="),
        ({"targets": ("lin",), "init": "pissa"}, BATCHES, BadConfig, "does not start from data"),
        ({"targets": ("lin",), "rank": 12}, [batch(0, 1)], DoesNotFit, "vary in 3 directions"),
        ({"targets": ("lin",)}, lambda model: 1 / 0, ZeroDivisionError, "division"),
        ({"targets": ("lin",), "init": "corda"}, lambda model: model.lin(torch.zeros(4, 12)), DoesNotFit, "all zero"),
    ],
)
def test_what_cannot_start_from_data_says_so_and_leaves_no_trace(fields, calibrate, error, says) -> None:
    model = net()
    model.lin.training = True  # every module gets back its own mode
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(error, match=says):
        attach(model, LoRA(**{"rank": 2, "init": "eva", **fields}), calibrate=calibrate)
    unchanged(model, before)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"init": "pisa"}, "did you mean 'pissa'"),
        ({"init": "pissa_niter_4"}, "did you mean 'pissa"),
        ({"iterations": 4}, "it is of init='pissa-fast'"),
        ({"init": "corda", "rho": 2.0}, "it is of init='eva'"),
        ({"init": "eva", "rho": 0.5}, "at least 1"),
        ({"init": "pissa-fast", "iterations": 1.5}, "whole number"),
    ],
)
def test_fields_that_mean_nothing_are_refused(fields, says) -> None:
    with pytest.raises(BadConfig, match=says):
        LoRA(**fields)


def test_a_function_and_batches_measure_the_same() -> None:
    made = []
    for calibrate in (BATCHES, lambda model: [model(ids=ids, image=image) for ids, image in BATCHES]):
        model = net()
        attach(model, LoRA(rank=2, init="eva", targets=("lin", "gpt", "conv")), calibrate=calibrate)
        made.append({key: tensor.clone() for key, tensor in state(model).items()})
        detach(model)
    assert list(made[0]) == list(made[1]) and all(torch.equal(made[0][key], made[1][key]) for key in made[0])


def test_covariance_is_of_all_inputs() -> None:
    x, gauge = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)), Covariance()
    for part in x.split(7):
        gauge.take(part)
    assert torch.allclose(gauge.matrix(), x.t() @ x / 50, atol=1e-6)


# -- training ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["eva", "corda"])
def test_a_run_starts_from_its_own_data_and_resumes(tmp_path, dreambooth, init, monkeypatch) -> None:
    from studio.trainers import train
    from studio.trainers.loop import training

    settings = {
        "adapter": LoRA(rank=2, init=init, targets=("attn1.to_q", "attn1.to_v")), "steps": 3, "batch_size": 2,
        "quiet": True, "cache": str(tmp_path / "cache"), "checkpoint_every": 1,
    }  # fmt: skip
    whole = train(dreambooth, output=tmp_path / "a", **settings)
    step = training.Training._step

    def stopped(self: training.Training, done: int) -> dict[str, float]:
        if done == 3:
            raise KeyboardInterrupt
        return step(self, done)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(training.Training, "_step", stopped)
        train(dreambooth, output=tmp_path / "b", **settings)
    again = train(dreambooth, output=tmp_path / "b", **settings)
    assert again.adapter.read_bytes() == whole.adapter.read_bytes()


def test_mica_trains_within_the_minor_directions_alone(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 4))
    x, model = torch.randn(3, 8), copy.deepcopy(net)
    report = studio.attach(model, studio.LoRA(rank=2, init="mica", targets=("0", "2")))
    assert report.parameters == 2 * 8 + 2 * 6 and torch.equal(model(x), net(x))
    own = dict(model.named_buffers())["0.adapters.default.up"]
    minor = torch.linalg.svd(net[0].weight, full_matrices=False).U[:, -2:]
    torch.testing.assert_close(own @ own.T, minor @ minor.T)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 if parameter.requires_grad else 0.0)
    wanted = model(x)
    with pytest.raises(UnsupportedLayer, match="attach anew"):
        studio.grow(model, "default", 3)
    studio.save(model, tmp_path / "adapter.safetensors")
    again = copy.deepcopy(net)
    studio.load(again, tmp_path / "adapter.safetensors", trainable=True)
    assert torch.equal(again(x), wanted)
    trained = {name for name, parameter in again.named_parameters() if parameter.requires_grad}
    assert {name.rpartition(".")[2] for name in trained} == {"down"}


@pytest.mark.parametrize("alpha", [None, 1.0, 8.0])
def test_olora_trains_the_factors_of_qr_whatever_the_scale(alpha):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 6))
    q, r = torch.linalg.qr(net[0].weight.detach())
    studio.attach(net, studio.LoRA(rank=2, alpha=alpha, init="olora", targets=("0",)))
    torch.testing.assert_close(net[0].adapters.default.tensors()["down"].detach(), r[:2])
    torch.testing.assert_close(net[0].adapters.default.tensors()["up"].detach(), q[:, :2])


@pytest.mark.parametrize("fields", [{"rank": 1}, {"rank": 1, "decompose_both": True}, {"rank": 8}])
@pytest.mark.parametrize("init, zero", [("w1", "w1"), ("w2", "w2")])
def test_lokr_begins_with_one_part_at_zero(init, zero, fields):
    net = nn.Sequential(nn.Linear(16, 16))
    studio.attach(net, studio.LoKr(init=init, targets=("0",), **fields))
    empty = {name for name, tensor in net[0].adapters.default.tensors().items() if not tensor.any()}
    assert len(empty) == 1 and empty.pop().startswith(zero)
    with pytest.raises(studio.errors.BadConfig, match="init"):
        studio.LoKr(init="w3")
