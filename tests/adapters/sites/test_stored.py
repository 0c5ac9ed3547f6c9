"""A layer that computes its weight before each call is refused by its name, with what makes it an ordinary one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, remove_spectral_norm, remove_weight_norm

import studio
from studio.errors import UnsupportedLayer

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")


class Symmetric(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).T


def _parametrized(layer: nn.Module, name: str, rule: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, name, rule)
    return layer


def _pruned(layer: nn.Module) -> nn.Module:
    prune.l1_unstructured(layer, "weight", 0.5)
    return layer


def _plain(layer: nn.Module, name: str = "weight") -> Any:
    return parametrize.remove_parametrizations(layer, name)


# what is done to the layer -> how it is made, what the message calls it, what makes it a plain one
COMPUTED: dict[str, tuple[Callable[[], nn.Module], str, Callable[[Any], Any]]] = {
    "weight_norm": (lambda: parametrizations.weight_norm(nn.Linear(6, 6)), "WeightNorm", _plain),
    "weight_norm, conv": (lambda: parametrizations.weight_norm(nn.Conv1d(6, 6, 1)), "WeightNorm", _plain),
    "weight_norm, old": (lambda: nn.utils.weight_norm(nn.Linear(6, 6)), "WeightNorm", remove_weight_norm),
    "weight_norm, old, conv": (lambda: nn.utils.weight_norm(nn.Conv1d(6, 6, 1)), "WeightNorm", remove_weight_norm),
    "spectral_norm": (lambda: parametrizations.spectral_norm(nn.Linear(6, 6)), "SpectralNorm", _plain),
    "spectral_norm, old": (lambda: nn.utils.spectral_norm(nn.Conv1d(6, 6, 1)), "SpectralNorm", remove_spectral_norm),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(6, 6)), "Orthogonal", _plain),
    "one's own": (lambda: _parametrized(nn.Linear(6, 6), "weight", Symmetric()), "Symmetric", _plain),
    "a bias": (lambda: _parametrized(nn.Linear(6, 6), "bias", nn.Tanh()), "Tanh", lambda one: _plain(one, "bias")),
    "pruned": (lambda: _pruned(nn.Linear(6, 6)), "pruning", lambda layer: prune.remove(layer, "weight")),
}


def _net(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Sequential(layer), nn.LayerNorm(6))


@pytest.mark.parametrize("targets", ["0.0", "re:.*", "*"])
@pytest.mark.parametrize("what", COMPUTED)
def test_it_is_refused_by_name(what: str, targets: str) -> None:
    make, how, _ = COMPUTED[what]
    net = _net(make())
    names = [name for name, _ in net.named_parameters()]
    with pytest.raises(UnsupportedLayer, match=rf"0\.0 computes its (weight|bias) anew .*\({how}\).*or exclude"):
        studio.attach(net, studio.LoRA(rank=2, targets=(targets,)))
    assert [name for name, _ in net.named_parameters()] == names
    assert all(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize("what", COMPUTED)
def test_the_way_out_that_the_message_names_is_one(what: str) -> None:
    make, _, end = COMPUTED[what]
    torch.manual_seed(0)
    net = _net(make())
    end(net[0][0])  # type: ignore[index]
    studio.attach(net, studio.LoRA(rank=2, targets=("0.0",)))
    assert studio.adapters(net)["default"].sites == ("0.0",)


def test_other_layers_are_adapted_once_it_is_excluded() -> None:
    net = nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 6)), nn.Linear(6, 6))
    assert studio.attach(net, studio.LoRA(rank=2, targets="re:.*", exclude=("0",))).sites == ("1",)


def test_a_norm_with_a_computed_weight_is_refused_too() -> None:
    net = nn.Sequential(nn.LayerNorm(6), parametrizations.weight_norm(nn.LayerNorm((6, 6))))
    with pytest.raises(UnsupportedLayer, match="1 computes its weight anew"):
        studio.attach(net, studio.LNTuning(targets="norms"))


def test_a_joint_projection_that_is_computed_is_refused_too() -> None:
    attention = parametrizations.weight_norm(nn.MultiheadAttention(6, 2), "in_proj_weight")
    with pytest.raises(UnsupportedLayer, match="0 computes its in_proj_weight anew"):
        studio.attach(nn.Sequential(attention), studio.LoRA(rank=2, targets="attention"))


@pytest.mark.parametrize("layer", [lambda: nn.LazyLinear(6), lambda: nn.LazyConv1d(6, 1)])
def test_a_layer_that_has_no_weight_yet_says_so(layer: Callable[[], nn.Module]) -> None:
    with pytest.raises(UnsupportedLayer, match="has no weight before its first call"):
        studio.attach(nn.Sequential(layer()), studio.LoRA(rank=2, targets=("0",)))


def test_a_bottleneck_may_sit_behind_a_computed_layer() -> None:
    net = _net(parametrizations.weight_norm(nn.Linear(6, 6)))
    assert studio.attach(net, studio.Bottleneck(size=2, targets=("re:0",))).sites == ("0",)
    assert net(torch.ones(2, 6)).shape == (2, 6)
