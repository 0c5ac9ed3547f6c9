"""Quantised layers: ours, quanto's and torchao's; QA-LoRA in their zero points; LoftQ.

The reference of a quantised layer is torch's Linear with the dequantised weight.
"""

from __future__ import annotations

import copy
import importlib.util
import io

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import studio
from studio.adapters import METHODS, GroupQuantizedLinear, LoRA, QALoRA, attach, bake, blended, detach, state, unbake
from studio.errors import BadConfig, DoesNotFit, UnsupportedLayer
from studio.quantization.grid import _unpacked, packed_codes, to_grid


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 16, bias=False))


def quantized(bits: int = 4, group: int = 8) -> nn.Sequential:
    model = net()
    studio.quantize(model, bits=bits, group=group)
    return model


def dense(model: nn.Sequential) -> nn.Sequential:
    """The same function in torch's own layers."""
    plain = net()
    with torch.no_grad():
        for index in (0, 2):
            plain[index].weight.copy_(model[index].weight)
    return plain


X = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(2))


def shake(model: nn.Module, name: str = "default", seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in state(model, name).values():
            if tensor.requires_grad:
                tensor += 0.1 * torch.randn(tensor.shape, generator=generator).to(tensor)


def relative(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).detach().norm() / wanted.detach().norm())


def bits_of(model: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in model.state_dict().items() if ".adapters." not in key}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> set[str]:
    """Keys whose tensors differ."""
    assert first.keys() == second.keys()
    return {key for key in first if not torch.equal(first[key], second[key])}


# -- the grid ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("cols", [8, 12, 40])
def test_codes_come_back_from_their_bytes(bits: int, cols: int) -> None:
    codes = torch.randint(0, 2**bits, (5, cols), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    packed = packed_codes(codes, bits)
    assert torch.equal(_unpacked(packed, bits, cols), codes)
    assert packed.shape[1] == -(-cols // 8) * bits  # eight codes take `bits` bytes


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rounding_is_to_the_nearest_of_evenly_spaced_numbers(bits: int) -> None:
    weight = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    weight[2, 8:16] = 0.7  # a group without a range is exact
    grid = to_grid(weight, bits, group=8)
    parts = weight.double().unflatten(1, (4, 8))
    step = (parts.amax(2) - parts.amin(2)) / (2**bits - 1)
    error = (grid.weight().double().unflatten(1, (4, 8)) - parts).abs().amax(2)
    assert (error <= step / 2 + 1e-6).all() and grid.group == 8 and int(grid.codes.max()) == 2**bits - 1
    assert torch.equal(grid.weight()[2, 8:16], weight[2, 8:16])


def test_more_bits_and_smaller_groups_are_nearer() -> None:
    errors = {(b, g): studio.quantize(net(), bits=b, group=g).error for b in (2, 3, 4, 8) for g in (4, 8)}
    for group in (4, 8):
        assert errors[2, group] > 2 * errors[3, group] > 4 * errors[4, group] > 32 * errors[8, group]
    assert all(errors[bits, 8] > errors[bits, 4] for bits in (2, 3, 4, 8))


# -- the layer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_layer_is_a_linear_with_the_dequantised_weight(dtype: torch.dtype) -> None:
    model = quantized()
    exact = model[0].grid.weight()
    model.to(dtype)
    assert torch.equal(model[0].grid.weight(), exact), "scales and zero points keep their precision"
    plain = dense(quantized()).to(dtype)
    x, y = (X.to(dtype, copy=True).requires_grad_() for _ in range(2))
    ours, theirs = model(x), plain(y)
    assert ours.dtype == dtype and model[0].weight.dtype == dtype
    ours.sum().backward()
    theirs.sum().backward()
    tolerance = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float64: 1e-6}[dtype]
    assert relative(ours, theirs) <= tolerance and relative(x.grad, y.grad) <= tolerance
    assert relative(model[0].bias.grad, plain[0].bias.grad) <= tolerance


def test_no_dequantised_weight_is_kept_for_the_backward_pass() -> None:
    model, kept = quantized(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        model(X.clone().requires_grad_())
    floats = [tensor for tensor in kept if tensor.is_floating_point() and tensor.shape in ((32, 32), (16, 32))]
    assert kept and not floats


def test_with_gradients_or_without_the_bits_are_the_same() -> None:
    model = quantized().requires_grad_(False)
    assert torch.equal(model(X.clone().requires_grad_()), model(X))


def test_state_copies_and_pickles() -> None:
    model = quantized()
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    other = net()
    studio.quantize(other, group=8)
    with torch.no_grad():
        for buffer_ in other.buffers():
            buffer_.zero_()
    other.load_state_dict(model.state_dict())
    for again in (other, copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        assert torch.equal(again(X), model(X)) and not same(bits_of(again), bits_of(model))
    assert set(model.state_dict()) == {"0.codes", "0.scales", "0.zeros", "0.bias", "2.codes", "2.scales", "2.zeros"}


def test_its_weights_count_as_parameters_of_the_model() -> None:
    model = quantized()
    attach(model, LoRA(rank=2, targets=("0",)))
    assert studio.trainable(model) == studio.adapters.TrainableReport(2 * 64, 2 * 64 + 32 * 32 + 32 + 16 * 32)


# -- adapters on it ------------------------------------------------------------------------------------------------

ON_LINEAR = sorted(method for method in METHODS if {"linear", "conv"} <= set(METHODS[method].adapter.kinds))


@pytest.mark.parametrize("method", ON_LINEAR)
def test_every_method_acts_on_it_as_on_a_linear(method: str) -> None:
    config = METHODS[method].example(targets=("0", "2"))
    model = quantized()
    plain, before = dense(model), bits_of(model)
    for one in (model, plain):
        attach(one, config)
        shake(one)
    live, wanted = model(X), plain(X)
    assert relative(live, wanted) <= 1e-5 and relative(wanted, dense(quantized())(X)) > 1e-3
    weights = torch.randn(live.shape, generator=torch.Generator().manual_seed(5))  # a sum alone is blind to frequencies
    (live * weights).sum().backward()
    (wanted * weights).sum().backward()
    for (key, ours), theirs in zip(state(model).items(), state(plain).values(), strict=True):
        assert ours.grad is None if theirs.grad is None else relative(ours.grad, theirs.grad) <= 1e-4, key
    if METHODS[method].adapter.bakes:
        bake(model, {"default": 0.7})
        bake(plain, {"default": 0.7})
        assert relative(model(X), plain(X)) <= 1e-5
        assert torch.equal(model[0].codes, before["0.codes"])
        unbake(model)
        assert torch.equal(model(X), live)
    detach(model)
    assert not same(bits_of(model), before) and type(model[0]) is GroupQuantizedLinear
    assert not model[0]._forward_hooks and "adapters" not in model[0]._modules


# -- QA-LoRA's merge -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["sum", "mean", "groups"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [8, 4])
def test_baking_moves_the_zero_points_and_nothing_else(bits: int, group: int, pooling: str) -> None:
    model = quantized(bits, group)
    before, weights = bits_of(model), {index: model[index].grid.weight() for index in (0, 2)}
    settings = QALoRA(rank=2, alpha=3.0, group=8, pooling=pooling, targets=("0", "2"))
    attach(model, settings, name="one")
    attach(model, settings, name="two", seed=1)
    shake(model, "one", 1)
    shake(model, "two", 2)
    strengths = {"one": 0.7, "two": -1.2}
    with blended(model, strengths):
        live = model(X)
    bake(model, strengths)
    assert same(bits_of(model), before) == {"0.zeros", "2.zeros"}
    assert relative(model(X), live) <= 1e-5
    for index, weight in weights.items():
        columns = weight.shape[1]
        share = {"sum": 1, "mean": 1 / 8, "groups": columns / 8 / 8}[pooling]
        change = torch.zeros(weight.shape, dtype=torch.float64)
        for name, strength in strengths.items():
            up, down = (state_of(model, name, index, part).double() for part in ("up", "down"))
            change += strength * 1.5 * share * (up @ down).repeat_interleave(8, dim=1)
        assert relative(model[index].grid.weight().double(), weight.double() + change) <= 1e-6
    unbake(model)
    assert not same(bits_of(model), before)


def state_of(model: nn.Module, name: str, index: int, part: str) -> Tensor:
    return getattr(model[index].adapters._modules[name], part).detach()


@pytest.mark.parametrize("other", [LoRA(rank=2, targets=("0",)), QALoRA(rank=2, group=4, targets=("0",))])
def test_what_is_not_constant_in_the_groups_gets_a_dense_weight(other) -> None:
    model = quantized(group=8)
    before = bits_of(model)
    attach(model, QALoRA(rank=2, group=8, targets=("0",)), name="fits")
    attach(model, other, name="other")
    shake(model, "fits")
    shake(model, "other")
    live = model(X)
    bake(model)
    after = bits_of(model)
    dense_weight = after.pop("0.dense")
    assert dense_weight.shape == (32, 32) and not same(after, before) and relative(model(X), live) <= 1e-5
    unbake(model)
    assert not same(bits_of(model), before) and torch.equal(model(X), live)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"group": 5}, "does not divide the 32 columns of 0"),
        ({"group": 16, "rank": 3}, "larger than the layer 0"),
        ({"group": 0}, "at least 1"),
        ({"pooling": "avg"}, "of sum, mean, groups"),
        ({"pooling": "means"}, "did you mean 'mean'"),
    ],
)
def test_groups_and_ranks_that_do_not_fit_are_refused(fields, says) -> None:
    model = net()
    with pytest.raises(BadConfig, match=says):
        attach(model, QALoRA(**{"rank": 2, "group": 8, "targets": ("0",), **fields}))
    assert not studio.adapters(model)


# -- the verb ------------------------------------------------------------------------------------------------------


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(10, 8)
        self.mha = nn.MultiheadAttention(8, 2, batch_first=True)
        self.gpt = Conv1D(16, 8)
        self.lin = nn.Linear(16, 8)
        self.lm_head = nn.Linear(8, 10, bias=False)
        self.lm_head.weight = self.emb.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.emb(ids)
        return self.lm_head(self.lin(torch.tanh(self.gpt(self.mha(x, x, x, need_weights=False)[0].contiguous()))))


def test_a_preset_takes_the_linear_layers_and_says_what_it_keeps() -> None:
    torch.manual_seed(0)
    model, ids = Mixed(), torch.arange(6).view(2, 3)
    before = model(ids)
    report = studio.quantize(model, bits=8, group=8)
    assert report.sites == ("gpt", "lin") and report.kept == ("mha", "mha.out_proj")
    assert type(model.gpt) is type(model.lin) is GroupQuantizedLinear and relative(model(ids), before) <= 0.01
    size = sum(getattr(layer, part).nbytes for layer in (model.gpt, model.lin) for part in ("codes", "scales", "zeros"))
    assert report.after == size and report.before == 4 * (8 * 16 + 16 * 8)


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"targets": ("lm_head",)}, DoesNotFit, "the weight of lm_head is also that of emb"),
        ({"targets": ("out_proj",)}, UnsupportedLayer, "mha.out_proj"),
        ({"targets": ("lin", "emb")}, UnsupportedLayer, "emb is a Embedding"),
        ({"group": 3}, BadConfig, "group=3 does not divide"),
        ({"bits": 5, "group": 8}, BadConfig, "bits=5"),
        ({"rank": 0, "iterations": 2}, BadConfig, "more than 1 need a rank"),
        ({"targets": ("lni",)}, studio.errors.NoTargets, "lin"),
    ],
)
def test_what_cannot_be_quantised_is_named_and_nothing_is_changed(fields, error, says) -> None:
    model = Mixed()
    before, kinds = bits_of(model), [type(module) for module in model.modules()]
    with pytest.raises(error, match=says):
        studio.quantize(model, **{"group": 8, **fields})
    assert not same(bits_of(model), before) and [type(module) for module in model.modules()] == kinds


def test_a_base_with_adapters_and_a_lonely_layer_are_refused() -> None:
    model = net()
    attach(model, LoRA(rank=2, targets=("0",)))
    with pytest.raises(DoesNotFit, match="quantise the base first"):
        studio.quantize(model)
    with pytest.raises(DoesNotFit, match="one single layer"):
        studio.quantize(nn.Linear(32, 8), targets=("re:",))


# -- LoftQ ---------------------------------------------------------------------------------------------------------


def loftq(bits: int, iterations: int, rank: int = 4, **fields: object) -> tuple[list[float], nn.Sequential]:
    """``‖W − (Q + s up·down)‖ / ‖W‖`` of the two layers, and the model."""
    full, model = net(), net()
    studio.quantize(model, bits=bits, group=8, rank=rank, iterations=iterations)
    attach(model, LoRA(rank=rank, init="loftq", targets=("0", "2"), **fields), original=full)
    errors = []
    for index in (0, 2):
        scale = model[index].adapters._modules["default"].scale
        pair = scale * state_of(model, "default", index, "up") @ state_of(model, "default", index, "down")
        errors.append(relative(model[index].weight + pair, full[index].weight))
    return errors, model


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_loftq_is_nearer_to_the_weight_than_rounding_and_more_turns_are_nearer(bits: int) -> None:
    full, plain = net(), quantized(bits)
    rounded = [relative(plain[index].weight, full[index].weight) for index in (0, 2)]
    turns = {count: loftq(bits, count)[0] for count in (1, 2, 5, 20)}
    for layer in (0, 1):
        assert turns[1][layer] < 0.95 * rounded[layer]
        assert turns[20][layer] <= turns[5][layer] <= turns[2][layer] < turns[1][layer]
    model = loftq(bits, 5, alpha=8, rank_stabilized=True)[1]
    assert relative(model(X), full(X)) < relative(plain(X), full(X))


@pytest.mark.parametrize("iterations", [1, 3])
def test_loftq_is_the_algorithm_of_the_paper(iterations: int) -> None:
    """Algorithm 1 in float64: Q = quantised(W − A B), then A B = SVD_r(W − Q), in turns."""
    model = loftq(3, iterations)[1]
    weight, pair = net()[0].weight.detach().double(), 0
    for _ in range(iterations):
        parts = (weight - pair).unflatten(1, (-1, 8))
        low, high = parts.amin(2, keepdim=True), parts.amax(2, keepdim=True)
        step = (high - low) / 7
        rounded = (((parts - low) / step).round() * step + low).flatten(1)
        u, s, vh = torch.linalg.svd(weight - rounded)
        pair = u[:, :4] * s[:4] @ vh[:4]
    assert relative(model[0].weight.double(), rounded) <= 1e-5
    assert relative((state(model)["0.up"] @ state(model)["0.down"]).double(), pair) <= 1e-4


def test_the_pair_of_loftq_is_that_of_peft() -> None:
    utils = pytest.importorskip("peft.utils.loftq_utils")
    full, model = net(), quantized(2)
    attach(model, LoRA(rank=3, init="loftq", targets=("0",)), original=full)
    residual = full[0].weight.detach() - model[0].weight
    theirs = utils._low_rank_decomposition(residual, reduced_rank=3)
    up, down = (state_of(model, "default", 0, part) for part in ("up", "down"))
    assert relative(up @ down, theirs["L"] @ theirs["R"]) <= 1e-5
    assert torch.allclose(up.norm(dim=0), theirs["L"].norm(dim=0), rtol=1e-4)


@pytest.mark.parametrize(
    ("original", "says"),
    [(None, "original="), (nn.Sequential(nn.Linear(4, 4)), "quantised one"), (nn.Sequential(nn.Tanh()), "0")],
)
def test_loftq_needs_the_model_as_it_was(original, says) -> None:
    model = quantized()
    with pytest.raises((BadConfig, DoesNotFit, UnsupportedLayer), match=says):
        attach(model, LoRA(rank=2, init="loftq", targets=("0",)), original=original)
    assert not studio.adapters(model)
    with pytest.raises(BadConfig, match="original is given"):
        attach(net(), LoRA(rank=2, targets=("0",)), original=net())


# -- layers of others ----------------------------------------------------------------------------------------------


def quanto(dtype: torch.dtype = torch.float32) -> nn.Module:
    library = pytest.importorskip("optimum.quanto")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 24), nn.Tanh(), nn.Linear(24, 16)).to(dtype)
    library.quantize(model, weights=library.qint4, exclude="2")
    library.freeze(model)
    return model


def torchao(dtype: torch.dtype = torch.float32) -> nn.Module:
    if importlib.util.find_spec("torchao") is None:
        pytest.skip("torchao is not installed")
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup
    from torchao.quantization.quant_primitives import MappingType

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 24), nn.Tanh(), nn.Linear(24, 16)).to(dtype)
    settings = IntxWeightOnlyConfig(torch.int4, PerGroup(32), mapping_type=MappingType.ASYMMETRIC)
    quantize_(model[0], settings)
    return model


@pytest.mark.filterwarnings("ignore")  # of these packages, while they are imported
@pytest.mark.parametrize("make", [quanto, torchao], ids=["quanto", "torchao"])
@pytest.mark.parametrize("config", [QALoRA(rank=2, group=128, targets=("0",)), studio.DoRA(rank=2, targets=("0",))])
def test_the_layers_of_quanto_and_torchao_carry_adapters(make, config) -> None:
    model = make()
    plain, stored = nn.Sequential(nn.Linear(256, 24), nn.Tanh(), model[2]), model[0].weight
    with torch.no_grad():
        plain[0].weight.copy_(stored.dequantize())
        plain[0].bias.copy_(model[0].bias)
    x = torch.randn(3, 5, 256, generator=torch.Generator().manual_seed(0))
    bare = model(x)
    for one in (model, plain):
        attach(one, config)
        shake(one)
    live = model(x.requires_grad_())
    assert relative(live, plain(x)) <= 1e-5
    live.sum().backward()
    assert all(tensor.grad is not None for tensor in state(model).values())
    bake(model, {"default": 0.5})
    bake(plain, {"default": 0.5})
    assert relative(model(x), plain(x)) <= 1e-5
    if isinstance(config, QALoRA):  # still quantised, with the same codes and scales
        codes, scale = ("qdata", "scale") if make is torchao else ("_data", "_scale")
        now = model[0].weight
        assert type(now) is type(stored) and torch.equal(getattr(now, scale), getattr(stored, scale))
        assert bool((getattr(now, codes) == getattr(stored, codes)).all())
        assert relative(now.dequantize(), plain[0].weight) <= 1e-6
    unbake(model)
    assert model[0].weight is stored and torch.equal(model(x), live)
    detach(model)
    assert torch.equal(model(x), bare) and type(model[0]).forward.__qualname__.startswith(type(model[0]).__name__)


def test_a_quanto_layer_that_is_not_frozen_is_refused() -> None:
    library = pytest.importorskip("optimum.quanto")
    model = nn.Sequential(nn.Linear(256, 24))
    library.quantize(model, weights=library.qint4)
    with pytest.raises(UnsupportedLayer, match="freeze"):
        attach(model, LoRA(rank=2, targets=("0",)))
