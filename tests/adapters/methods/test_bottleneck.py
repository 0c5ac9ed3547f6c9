"""Bottleneck adapters against the same network built from torch's own modules."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import studio
from studio.errors import BadConfig, DoesNotFit, UnsupportedLayer
from tiny import llama

ACTIVATIONS = {"relu": nn.ReLU(), "gelu": nn.GELU(), "silu": nn.SiLU(), "swish": nn.SiLU(), "tanh": nn.Tanh()}


class Block(nn.Module):
    """A module that returns more than a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 5), nn.Linear(5, 12)

    def forward(self, hidden_states: Tensor, times: int = 1) -> tuple[Tensor, str]:
        return self.last(torch.tanh(self.first(hidden_states))) * times, "more"


class Pictures(nn.Module):
    """The same over channels: its axis is told by its last convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(8, 5, 1), nn.Conv2d(5, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x))


def floats(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


# layer, an input, how it is called, the axis of the channels
LAYERS: dict[str, tuple[Callable[[], nn.Module], Tensor, Callable[[nn.Module, Tensor], Tensor], int]] = {
    "linear": (lambda: nn.Linear(8, 12), floats(3, 5, 8), lambda m, x: m(x), -1),
    "gpt2": (lambda: Conv1D(12, 8), floats(3, 5, 8), lambda m, x: m(x), -1),
    "embedding": (lambda: nn.Embedding(10, 12), torch.tensor([[1, 7, 1]]), lambda m, x: m(x), -1),
    "conv1d": (lambda: nn.Conv1d(8, 12, 3, padding="same"), floats(3, 8, 5), lambda m, x: m(x), 1),
    "conv2d": (lambda: nn.Conv2d(8, 12, 3, padding=1, groups=4), floats(3, 8, 5, 5), lambda m, x: m(x), 1),
    "module": (Block, floats(3, 5, 8), lambda m, x: m(x)[0], -1),
    "module-named": (Block, floats(3, 5, 8), lambda m, x: m(times=2, hidden_states=x)[0], -1),
    "module-conv": (Pictures, floats(3, 8, 5, 5), lambda m, x: m(x), 1),
}
CONFIGS = {
    "plain": {"size": 3},
    "wide": {"reduction": 2, "activation": "gelu", "norm": True, "scale": 0.5},
    "parallel": {"size": 3, "placement": "parallel", "activation": "swish", "scale": 4.0, "train_scale": True},
    "parallel-norm": {"size": 2, "placement": "parallel", "activation": "tanh", "norm": True},
}


class Reference(nn.Module):
    """``s · up(act(down(norm(z))))`` with torch's own layers, on the last axis."""

    def __init__(self, tensors: dict[str, Tensor], config: studio.Bottleneck) -> None:
        super().__init__()
        size, width = tensors["down"].shape
        self.norm = nn.LayerNorm(width) if config.norm else nn.Identity()
        self.down, self.up = nn.Linear(width, size), nn.Linear(size, tensors["up"].shape[0])
        self.act = ACTIVATIONS[config.activation]
        self.scale = nn.Parameter(torch.tensor([config.scale]))
        self.double()
        names = {"down.weight": "down", "down.bias": "down_bias", "up.weight": "up", "up.bias": "up_bias"}
        names |= {"norm.weight": "norm_weight", "norm.bias": "norm_bias", "scale": "scale"}
        self.ours = {ours: self.get_parameter(name) for name, ours in names.items() if ours in tensors}
        with torch.no_grad():
            for name, parameter in self.ours.items():
                parameter.copy_(tensors[name])

    def forward(self, z: Tensor) -> Tensor:
        return self.up(self.act(self.down(self.norm(z)))) * self.scale


@pytest.mark.parametrize(
    ("layer", "config"),
    [(one, config) for one in LAYERS for config in CONFIGS if one != "embedding" or "parallel" not in config],
)
def test_output_and_gradients_are_those_of_plain_modules(layer: str, config: str) -> None:
    make, x, call, axis = LAYERS[layer]
    settings = studio.Bottleneck(targets=("0",), **CONFIGS[config])
    torch.manual_seed(0)
    model = nn.ModuleDict({"0": make()}).double()
    studio.attach(model, settings)
    with torch.no_grad():
        for tensor in studio.state(model).values():
            tensor += 0.3 * torch.randn_like(tensor)
    model.double()
    tensors = {key.removeprefix("0."): tensor for key, tensor in studio.state(model).items()}
    reference = Reference(tensors, settings)
    x_ours, x_theirs = (x.clone().requires_grad_(x.is_floating_point()) for _ in range(2))
    actual = call(model["0"], x_ours)
    with studio.blended(model, {}):
        y = call(model["0"], x_theirs)
    z = x_theirs if settings.placement == "parallel" else y
    expected = y + reference(z.movedim(axis, -1)).movedim(-1, axis)
    assert torch.allclose(actual, expected, rtol=1e-12, atol=1e-12)
    weights = torch.randn(actual.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    (actual * weights).sum().backward()
    (expected * weights).sum().backward()
    for name, parameter in reference.ours.items():
        assert torch.allclose(tensors[name].grad, parameter.grad, rtol=1e-10, atol=1e-10), name
    if x.is_floating_point():
        assert torch.allclose(x_ours.grad, x_theirs.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("placement", "places", "numbers"),
    [
        ("houlsby", ("self_attn.o_proj", "mlp.down_proj"), 2 * (2 * 16 * 4 + 4 + 16)),
        ("pfeiffer", ("mlp.down_proj",), 2 * 16 * 4 + 4 + 16),
        ("parallel", ("mlp",), 2 * 16 * 4 + 4 + 16),
    ],
)
def test_placements_of_the_papers(placement: str, places: tuple[str, ...], numbers: int) -> None:
    model, ids = llama(intermediate_size=48), torch.arange(6)[None]
    before = model(ids).logits
    report = studio.attach(model, studio.Bottleneck(placement=placement, reduction=4))
    assert report.sites == tuple(f"model.layers.{layer}.{place}" for layer in range(2) for place in places)
    assert report.parameters == 2 * numbers
    assert torch.equal(model(ids).logits, before)
    with torch.no_grad():
        for tensor in studio.state(model).values():
            tensor += 0.3 * torch.randn_like(tensor)
    whole = model(ids).logits
    assert not torch.allclose(whole, before, rtol=1e-2)
    # with a cache, token by token
    cache, steps = None, []
    for token in ids.T:
        step = model(token[None], past_key_values=cache, use_cache=True)
        cache = step.past_key_values
        steps.append(step.logits)
    assert torch.allclose(torch.cat(steps, dim=1), whole, atol=1e-5)


def test_a_feed_forward_that_keeps_its_layers_in_a_list_is_meant_as_a_whole() -> None:
    from diffusers.models.attention import BasicTransformerBlock

    model = nn.ModuleList([BasicTransformerBlock(16, 2, 8)])
    assert studio.attach(model, studio.Bottleneck(placement="parallel", size=3)).sites == ("0.ff",)


def test_checkpointing_keeps_the_gradients() -> None:
    ids, found = torch.arange(6)[None], []
    for checkpointed in (False, True):
        model = llama(intermediate_size=48).train()
        studio.attach(model, studio.Bottleneck(placement="parallel", size=4))
        if checkpointed:
            model.gradient_checkpointing_enable()
        with torch.no_grad():
            for tensor in studio.state(model).values():
                tensor += 0.1
        model(ids, use_cache=False).logits.square().mean().backward()
        found.append({key: tensor.grad for key, tensor in studio.state(model).items()})
    assert all(torch.equal(found[1][key], grad) for key, grad in found[0].items())


def test_attention_that_reads_its_weights_is_refused() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    keys = list(model.state_dict())
    with pytest.raises(UnsupportedLayer, match=r"self_attn.*'attention'"):
        studio.attach(model, studio.Bottleneck(targets=("self_attn",)))
    with pytest.raises(UnsupportedLayer, match=r"self_attn\.out_proj is read by its MultiheadAttention"):
        studio.attach(model, studio.Bottleneck(targets=("out_proj", "linear2")))
    assert list(model.state_dict()) == keys and type(model.linear2) is nn.Linear and not studio.adapters(model)


def test_nothing_of_it_can_be_folded_into_weights() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    studio.attach(model, studio.LoRA(rank=1, targets=("0",)), name="lora")
    studio.attach(model, studio.Bottleneck(size=2, targets=("0",)), name="bottle")
    weight = model[0].weight
    with pytest.raises(DoesNotFit, match=r"BottleneckAdapter at 0 computes with activations .* cannot be baked"):
        studio.bake(model)
    assert model[0].weight is weight
    studio.bake(model, {"lora": 1.0})
    studio.unbake(model)


def test_a_module_of_another_width_than_it_seems_says_so() -> None:
    class Halved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)[..., :4]

    model = nn.ModuleDict({"0": Halved()})
    studio.attach(model, studio.Bottleneck(size=2, targets=("0",)))
    with pytest.raises(DoesNotFit, match="made for 8 channels in and 8 out; this call has 4 and 4"):
        model["0"](torch.randn(2, 8))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"placement": "serial"}, "one of houlsby, pfeiffer, parallel"),
        ({"size": 0}, "at least 1"),
        ({"reduction": 0}, "at least 1"),
        ({"activation": "mish"}, "one of relu, gelu"),
        ({"scale": float("nan")}, "finite"),
        ({"dropout": 1.0}, "probability"),
    ],
)
def test_fields_that_cannot_be(fields: dict[str, object], says: str) -> None:
    with pytest.raises(BadConfig, match=says):
        studio.Bottleneck(**fields)


def test_tensors_that_the_config_does_not_ask_for_are_refused() -> None:
    from studio.adapters import install

    model = nn.Sequential(nn.Linear(4, 4))
    studio.attach(model, studio.Bottleneck(size=2, targets=("0",), train_scale=True))
    tensors = {"0": {key.removeprefix("0."): tensor.detach() for key, tensor in studio.state(model).items()}}
    with pytest.raises(DoesNotFit, match="'scale' that its config does not ask for"):
        install(model, studio.Bottleneck(size=2, targets=("0",)), tensors, name="again")
