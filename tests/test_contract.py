"""The contract of a method, for every method on every kind of layer.

The expected numbers come from the formulas of the papers, written out below in plain torch on whole matrices in
float64 (``FORMULAS``), and from torch's own layers run with the weights that the formulas give.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from studio.adapters import METHODS, attach, bake, blend, blended, detach, install, sample_rows, state, unbake
from studio.errors import UnsupportedLayer

B = 3


def gpt2(inner: int, outer: int) -> nn.Module:
    layer = Conv1D(outer, inner)
    nn.init.normal_(layer.bias)
    return layer


def tokens() -> Tensor:
    return torch.randint(0, 10, (B, 5), generator=torch.Generator().manual_seed(3))


def floats(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(B, *shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


# kind of layer: how it is made, an input for it
LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (lambda: nn.Linear(8, 12), floats(8)),
    "linear-tokens": (lambda: nn.Linear(8, 12, bias=False), floats(5, 8)),
    "gpt2": (lambda: gpt2(8, 12), floats(5, 8)),
    "embedding": (lambda: nn.Embedding(10, 12), tokens),
    "conv1d": (lambda: nn.Conv1d(8, 12, 3, stride=2, padding=1), floats(8, 9)),
    "conv2d": (lambda: nn.Conv2d(8, 12, 3, padding=1), floats(8, 5, 5)),
    "conv2d-1x1": (lambda: nn.Conv2d(8, 12, 1), floats(8, 3, 3)),
    "conv2d-dilated": (lambda: nn.Conv2d(8, 12, (3, 2), stride=(2, 1), padding=(2, 1), dilation=2), floats(8, 7, 6)),
    "conv2d-circular": (lambda: nn.Conv2d(8, 12, 3, padding=1, padding_mode="circular"), floats(8, 5, 5)),
    "conv2d-reflect": (lambda: nn.Conv2d(8, 12, 3, padding=1, padding_mode="reflect", bias=False), floats(8, 5, 5)),
    "conv2d-groups": (lambda: nn.Conv2d(8, 12, 3, padding=1, groups=4), floats(8, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(8, 12, (1, 2, 3), padding=(0, 1, 1)), floats(8, 3, 4, 4)),
    "attention": (lambda: nn.MultiheadAttention(8, 2, batch_first=True), floats(5, 8)),
}

# method: configs that together reach all its branches
CONFIGS: dict[str, dict[str, dict[str, Any]]] = {
    "lora": {
        "plain": {"rank": 2},
        "stabilized": {"rank": 2, "alpha": 3.0, "rank_stabilized": True, "init": "gaussian"},
        "bias": {"rank": 2, "alpha": 1.0, "use_bias": True},
        "orthogonal": {"rank": 2, "init": "orthogonal"},
        "pissa": {"rank": 2, "alpha": 1.0, "init": "pissa"},
        "olora": {"rank": 2, "init": "olora"},
        "pattern": {"rank": 3, "rank_pattern": {"re:.*": 1}, "alpha_pattern": {"0*": 5.0}},
    },
    "dora": {"plain": {"rank": 2}, "alpha": {"rank": 2, "alpha": 5.0, "rank_stabilized": True}},
    "ia3": {"outputs": {}, "inputs": {"feedforward": ("0", "0.out_proj")}},
    "lokr": {
        "plain": {"rank": 1},
        "whole": {"rank": 6, "alpha": 3.0},
        "both": {"rank": 1, "alpha": 2.0, "factor": 4, "decompose_both": True},
    },
}

# what a method cannot do, and refuses
REFUSED = {("ia3", "inputs", "embedding"), ("lora", "bias", "embedding")}

CASES = [
    pytest.param(method, config, layer, id=f"{method}-{config}-{layer}")
    for method, configs in CONFIGS.items()
    for config in configs
    for layer in LAYERS
    if (method, config, layer) not in REFUSED
]


class Tower(nn.Module):
    """One layer under test, called as its kind is called."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.add_module("0", layer)

    def forward(self, x: Tensor) -> Tensor:
        layer = self._modules["0"]
        assert layer is not None
        return layer(x, x, x, need_weights=False)[0] if isinstance(layer, nn.MultiheadAttention) else layer(x)


def tower(layer: str, dtype: torch.dtype = torch.float32) -> Tower:
    torch.manual_seed(0)
    model = Tower(LAYERS[layer][0]()).to(dtype).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:  # torch starts the biases of attention at zero
            nn.init.normal_(parameter)
    return model


def sample(layer: str, dtype: torch.dtype = torch.float32) -> Tensor:
    x = LAYERS[layer][1]()
    return x.to(dtype) if x.is_floating_point() else x


def config_for(method: str, config: str, layer: str) -> Any:
    return METHODS[method](targets=("0",), **CONFIGS[method][config])


def shake(model: nn.Module, name: str = "default", seed: int = 1) -> None:
    """Moves the trained tensors of an adapter away from its start, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, tensor in state(model, name).items():
            if not key.endswith(("down0", "up0")):
                tensor += 0.3 * torch.randn(tensor.shape, generator=generator).to(tensor)


# -- the formulas, on matrices (rows, cols) ------------------------------------------------------------------------


def matrix_view(layer: nn.Module, weight: Tensor) -> Tensor:
    return weight.t() if isinstance(layer, (nn.Embedding, Conv1D)) else weight.flatten(1)


def lora_formula(t: dict[str, Tensor], scale: float, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
    change = t["up"] @ t["down"].flatten(1)
    if "up0" in t:
        change = change - t["up0"] @ t["down0"].flatten(1)
    if "bias" in t:
        b = scale * t["bias"] if b is None else b + scale * t["bias"]
    return w + scale * change, b


def dora_formula(t: dict[str, Tensor], scale: float, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
    moved = w + scale * (t["up"] @ t["down"].flatten(1))
    return t["magnitude"][:, None] * moved / moved.norm(dim=1, keepdim=True).detach(), b


def ia3_formula(t: dict[str, Tensor], scale: float, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
    if "gain" in t:
        return t["gain"][:, None] * w, None if b is None else t["gain"] * b
    rows, gain = w.shape[0], t["gain_in"]
    groups = 4 if gain.shape[0] * (w.shape[1] // max(1, gain.shape[0])) != w.shape[1] else 1
    per_group = gain.reshape(groups, -1)  # (groups, channels of a group)
    spread = per_group.repeat_interleave(w.shape[1] // per_group.shape[1], dim=1)
    return w * spread.repeat_interleave(rows // groups, dim=0), b


def lokr_formula(t: dict[str, Tensor], scale: float, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
    w1 = t["w1"] if "w1" in t else t["w1_a"] @ t["w1_b"]
    w2 = t["w2"].flatten(1) if "w2" in t else t["w2_a"] @ t["w2_b"]
    blocks = [[w1[i, j] * w2 for j in range(w1.shape[1])] for i in range(w1.shape[0])]
    return w + scale * torch.cat([torch.cat(row, dim=1) for row in blocks]), b


FORMULAS = {"lora": lora_formula, "dora": dora_formula, "ia3": ia3_formula, "lokr": lokr_formula}


def scale_of(config: Any, path: str, tensors: dict[str, Tensor]) -> float:
    if not hasattr(config, "rank"):
        return 1.0
    rank = config.rank
    for pattern, value in config.rank_pattern.items():
        rank = value if pattern == "re:.*" else rank
    alpha = rank if config.alpha is None else config.alpha
    for pattern, value in config.alpha_pattern.items():
        alpha = value if pattern == "0*" else alpha
    return alpha / (math.sqrt(rank) if getattr(config, "rank_stabilized", False) else rank)


def by_site(model: nn.Module, name: str = "default") -> dict[str, dict[str, Tensor]]:
    sites: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state(model, name).items():
        path, _, part = key.rpartition(".")
        sites.setdefault(path, {})[part] = tensor
    return sites


def by_formula(method: str, config: Any, base: Tower, tensors: dict[str, dict[str, Tensor]], x: Tensor) -> Tensor:
    """The output of torch's own layer with the weights of the formula."""
    values: dict[str, Tensor] = {}
    for path, parts in tensors.items():
        layer = base.get_submodule(path)
        joint = isinstance(layer, nn.MultiheadAttention)
        names = ("in_proj_weight", "in_proj_bias") if joint else ("weight", "bias")
        weight, bias = (layer._parameters.get(name) for name in names)
        assert weight is not None
        moved, shift = FORMULAS[method](parts, scale_of(config, path, parts), matrix_view(layer, weight), bias)
        values[f"{path}.{names[0]}"] = matrix_shape(layer, moved, weight)
        if bias is None and shift is not None:
            layer.register_parameter("bias", nn.Parameter(torch.zeros_like(shift)))
        if shift is not None:
            values[f"{path}.{names[1]}"] = shift
    return torch.func.functional_call(base, values, (x,))


def matrix_shape(layer: nn.Module, matrix: Tensor, weight: Tensor) -> Tensor:
    return matrix.t() if isinstance(layer, (nn.Embedding, Conv1D)) else matrix.reshape(weight.shape)


def close(a: Tensor, b: Tensor, relative: float) -> None:
    error = (a - b).norm() / b.norm().clamp_min(1e-12)
    assert error <= relative, f"relative error {error:.2e} > {relative:.0e}"


# -- the promises --------------------------------------------------------------------------------------------------


def test_every_method_is_here() -> None:
    assert set(CONFIGS) == set(METHODS) == set(FORMULAS)


@pytest.mark.parametrize(("method", "config", "layer"), CASES)
def test_start_is_the_identity(method: str, config: str, layer: str) -> None:
    model, x = tower(layer), sample(layer)
    base = model(x)
    attach(model, config_for(method, config, layer))
    close(model(x), base, 1e-6)


@pytest.mark.parametrize(("method", "config", "layer"), CASES)
def test_forward_and_gradients_are_those_of_the_formula(method: str, config: str, layer: str) -> None:
    model, settings = tower(layer), config_for(method, config, layer)
    base = copy.deepcopy(model).double()
    attach(model, settings)
    shake(model)
    model.double()
    x = sample(layer, torch.float64)
    x_ours, x_theirs = x.clone(), x.clone()
    if x.is_floating_point():
        x_ours.requires_grad_()
        x_theirs.requires_grad_()
    leaves = {
        path: {key: tensor.detach().clone().requires_grad_() for key, tensor in parts.items()}
        for path, parts in by_site(model).items()
    }
    expected = by_formula(method, settings, base, leaves, x_theirs)
    actual = model(x_ours)
    close(actual, expected, 1e-12)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    (expected * weights).sum().backward()
    (actual * weights).sum().backward()
    for path, parts in by_site(model).items():
        for key, tensor in parts.items():
            if not key.endswith(("down0", "up0")):
                assert tensor.grad is not None, f"{path}.{key} got no gradient"
                close(tensor.grad, leaves[path][key].grad, 1e-10)  # type: ignore[arg-type]
    if x.is_floating_point():
        close(x_ours.grad, x_theirs.grad, 1e-10)  # type: ignore[arg-type]
    assert all(p.grad is None for name, p in model.named_parameters() if ".adapters." not in name)


@pytest.mark.parametrize(("method", "config", "layer"), CASES)
def test_live_is_baked_and_installed(method: str, config: str, layer: str) -> None:
    model, x, settings = tower(layer), sample(layer), config_for(method, config, layer)
    attach(model, settings)
    shake(model)
    blend(model, {"default": 0.7})
    live = model(x)
    bake(model)
    close(model(x), live, 1e-5)
    unbake(model)
    assert torch.equal(model(x), live)
    other = tower(layer)
    install(other, settings, by_site(model), name="again", strength=0.7)
    assert torch.equal(other(x), live)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("method", "config", "layer"), CASES)
def test_unbake_and_detach_give_the_base_back_bit_for_bit(
    method: str, config: str, layer: str, dtype: torch.dtype
) -> None:
    model = tower(layer, dtype)
    before = {key: (id(p), p.clone()) for key, p in model.named_parameters()}
    shape = {name: (type(m), id(m), set(vars(m)), dict(vars(m)["_parameters"])) for name, m in model.named_modules()}
    keys, required = list(model.state_dict()), [p.requires_grad for p in model.parameters()]
    attach(model, config_for(method, config, layer))
    shake(model)
    bake(model, {"default": 1.3})
    assert any(not torch.equal(before[k][1], p) for k, p in model.named_parameters() if k in before)
    unbake(model)
    assert all(id(p) == before[key][0] for key, p in model.named_parameters() if key in before)
    detach(model)
    assert all(id(p) == before[key][0] and torch.equal(p, before[key][1]) for key, p in model.named_parameters())
    assert list(model.state_dict()) == keys and [p.requires_grad for p in model.parameters()] == required
    after = {name: (type(m), id(m), set(vars(m)), dict(vars(m)["_parameters"])) for name, m in model.named_modules()}
    assert after == shape
    assert not model._forward_hooks and not model._forward_pre_hooks


@pytest.mark.parametrize(("method", "config", "layer"), CASES)
def test_strengths_per_sample_are_those_of_each_sample_alone(method: str, config: str, layer: str) -> None:
    model, x = tower(layer), sample(layer)
    attach(model, config_for(method, config, layer), name="one")
    attach(model, config_for(method, config, layer), name="two", seed=1)
    shake(model, "one", 1)
    shake(model, "two", 2)
    ones, twos = [0.0, 0.5, -1.0], [1.0, 0.25, 0.0]
    with blended(model, {"one": ones, "two": twos}):
        together = model(x)
        with sample_rows(model, [2, 2, 0]):
            rearranged = model(x)
    for row, (one, two) in enumerate(zip(ones, twos, strict=True)):
        with blended(model, {"one": one, "two": two}):
            close(together[row : row + 1], model(x[row : row + 1]), 1e-5)
    with blended(model, {"one": ones[2], "two": twos[2]}):
        close(rearranged[:2], model(x[:2]), 1e-5)
    with blended(model, {"one": ones[0], "two": twos[0]}):
        close(rearranged[2:], model(x[2:]), 1e-5)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("first", sorted(METHODS))
@pytest.mark.parametrize("second", sorted(METHODS))
def test_order_of_two_adapters_does_not_matter(first: str, second: str, layer: str) -> None:
    settings = [METHODS[name](targets=("0",), **next(iter(CONFIGS[name].values()))) for name in (first, second)]
    x, base = sample(layer), tower(layer)
    changes, outputs = [], []
    for order in ((0, 1), (1, 0)):
        model = tower(layer)
        for index in order:
            attach(model, settings[index], name=f"adapter{index}", seed=index)
            shake(model, f"adapter{index}", index + 7)
        blend(model, {"adapter0": 0.6, "adapter1": -0.4})
        outputs.append(model(x))
    close(outputs[0], outputs[1], 1e-5)
    if layer != "attention":  # outside attention a layer is linear in its weight: changes add up
        for index, strength in ((0, 0.6), (1, -0.4)):
            with blended(model, {f"adapter{index}": strength}):
                changes.append(model(x) - base(x))
        close(outputs[0], base(x) + changes[0] + changes[1], 1e-5)
    bake(model)
    close(model(x), outputs[1], 1e-5)


@pytest.mark.parametrize(("method", "config", "layer"), sorted(REFUSED))
def test_what_cannot_be_covered_is_refused_and_leaves_no_trace(method: str, config: str, layer: str) -> None:
    model = tower(layer)
    keys = list(model.state_dict())
    with pytest.raises(UnsupportedLayer):
        attach(model, config_for(method, config, layer))
    assert list(model.state_dict()) == keys and type(model.get_submodule("0")) is nn.Embedding


def test_padding_row_of_an_embedding_is_not_trained() -> None:
    model = Tower(nn.Embedding(10, 12, padding_idx=1))
    attach(model, METHODS["lora"](targets=("0",), rank=2, init="orthogonal"))
    model(tokens()).sum().backward()
    gradient = state(model)["0.down"].grad
    assert gradient is not None
    assert torch.equal(gradient[:, 1], torch.zeros(2)) and gradient.abs().sum() > 0
