"""A mask on a layer: inside, an adapter changes the output as without a mask; outside, not one bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import studio
from studio.adapters import METHODS, Strength
from studio.adapters.contract.mask import as_mask
from studio.adapters.hosting.assembly import assembly_at
from studio.errors import DoesNotFit

WIDE = 64
LEVELS = torch.tensor([[0.0, 0.0, 0.25], [1.0, 1.0, 0.0]])  # of the tokens, row by row
MASK = as_mask(LEVELS)
OUT, PART = LEVELS.flatten() == 0, LEVELS.flatten()
FIELDS = {"qalora": {"group": 4}}
LAYERED = [
    name
    for name, config in METHODS.items()
    if "linear" in getattr(config.adapter, "kinds", ()) and name != "tokenembedding"
]
CONVOLVED = [name for name in LAYERED if "conv" in METHODS[name].adapter.kinds]
NORMED = [name for name, config in METHODS.items() if "norm" in getattr(config.adapter, "kinds", ())]


class Here:
    """Every layer computes on the picture, but for the one called "whole"."""

    def mean(self, mask):
        return float(mask.tensor().mean())

    def is_whole(self, path):
        return path == "whole"

    def fits(self, path, count):
        return count == LEVELS.numel()

    def plane(self, mask, path, size):
        assert size == tuple(LEVELS.shape)
        return mask.tensor()

    def tokens(self, mask, path, count):
        return mask.tensor().flatten()[None]


class Net(nn.Module):
    def __init__(self, layer, name="layer"):
        super().__init__()
        self.name = name
        setattr(self, name, layer)

    def forward(self, x):
        return getattr(self, self.name)(x)


def attached(layer, *methods, name="layer"):
    """A net of one layer with adapters "a", "b", … whose tensors all changed, and what it is called with."""
    torch.manual_seed(0)
    net = Net(layer, name)
    for letter, method in zip("ab", methods, strict=False):
        studio.attach(net, METHODS[method](targets=(name,), **FIELDS.get(method, {})), name=letter, seed=1)
        draw = torch.Generator().manual_seed(ord(letter))
        with torch.no_grad():
            for tensor in studio.state(net, letter).values():
                if tensor.is_floating_point():
                    tensor.add_(torch.randn(tensor.shape, generator=draw) * 0.3)
    assembly_at(net).levels.regions = Here()
    shape = (2, WIDE, *LEVELS.shape) if isinstance(layer, (nn.Conv2d, nn.GroupNorm)) else (2, LEVELS.numel(), WIDE)
    return net.eval(), torch.randn(shape)


def drawn(net, x, **blend):
    """The output under a blend, ``(B, tokens, C)``."""
    studio.blend(net, blend)
    with torch.no_grad():
        y = net(x)
    return y.flatten(2).transpose(1, 2) if y.dim() == 4 else y


CASES = [
    *[(name, "linear") for name in LAYERED],
    *[(name, "conv") for name in CONVOLVED],
    *[(name, "norm") for name in NORMED],
    *[(name, "groups") for name in NORMED],
]
MAKE = {
    "linear": lambda: nn.Linear(WIDE, WIDE),
    "conv": lambda: nn.Conv2d(WIDE, WIDE, 3, padding=1),
    "norm": lambda: nn.LayerNorm(WIDE),
    "groups": lambda: nn.GroupNorm(2, WIDE),
}


@pytest.mark.parametrize(("method", "kind"), CASES)
def test_inside_is_as_without_a_mask_and_outside_as_without_the_adapter(method, kind):
    net, x = attached(MAKE[kind](), method)
    base, whole, masked = drawn(net, x), drawn(net, x, a=0.7), drawn(net, x, a=Strength(0.7, mask=MASK))
    assert not torch.equal(base[:, ~OUT], whole[:, ~OUT])
    assert torch.equal(masked[:, OUT], base[:, OUT])
    expected = base + (whole - base) * PART[None, :, None]
    assert torch.allclose(masked, expected, atol=2e-5 * float(whole.abs().max()))


@pytest.mark.parametrize("beside", LAYERED)
@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_what_else_acts_is_not_changed_by_a_bit_outside(method, beside):
    net, x = attached(nn.Linear(WIDE, WIDE), method, beside)
    alone = drawn(net, x, b=0.5)
    assert torch.equal(drawn(net, x, a=Strength(mask=MASK), b=0.5)[:, OUT], alone[:, OUT])
    other = Strength(0.5, mask=as_mask(1 - LEVELS))
    alone = drawn(net, x, b=other)
    assert torch.equal(drawn(net, x, a=Strength(mask=MASK), b=other)[:, OUT], alone[:, OUT])


def test_a_layer_of_the_whole_picture_changes_by_the_mean_of_the_mask():
    net, x = attached(nn.Linear(WIDE, WIDE), "lora", name="whole")
    base, whole = drawn(net, x[:, 0]), drawn(net, x[:, 0], a=1.0)
    masked = drawn(net, x[:, 0], a=Strength(mask=MASK))
    assert torch.allclose(masked, base + (whole - base) * float(LEVELS.mean()), atol=1e-5)


def test_heads_and_rows_that_stand_behind_each_other_are_known():
    net, x = attached(nn.Linear(WIDE, WIDE), "lora")
    masked = drawn(net, x, a=Strength(mask=MASK))
    for given, back in (
        (x[:, :, None].expand(-1, -1, 2, -1), lambda y: y[:, :, 1]),
        (x[:, None].expand(-1, 2, -1, -1), lambda y: y[:, 1]),
        (x[0], lambda y: y[None]),
    ):
        with torch.no_grad():
            assert torch.allclose(back(net(given)), masked[: len(back(net(given)))], atol=1e-6)
    with torch.no_grad(), pytest.raises(DoesNotFit, match="where a token lies"):
        net(x[:, :5])


def test_a_schedule_and_a_mask_multiply():
    net, x = attached(nn.Linear(WIDE, WIDE), "lora")
    half = drawn(net, x, a=Strength(0.5, mask=MASK))
    studio.blend(net, {"a": Strength(schedule=[(0, 0), (1, 1)], mask=MASK)})
    with torch.no_grad(), studio.at_progress(net, 0.5):
        assert torch.allclose(net(x), half, atol=1e-6)


def test_who_does_not_know_where_tokens_are_is_told_so():
    net, x = attached(nn.Linear(WIDE, WIDE), "lora")
    assembly_at(net).levels.regions = None
    studio.blend(net, {"a": Strength(mask=MASK)})
    with pytest.raises(DoesNotFit, match="while a picture is drawn"):
        net(x)


def test_what_cannot_have_regions_is_refused():
    net, x = attached(nn.Linear(WIDE, WIDE), "lora", "lora")
    with pytest.raises(DoesNotFit, match="differs by place"):
        studio.bake(net, {"a": Strength(mask=MASK)})
    studio.blend(net, {"a": Strength(mask=MASK), "b": [1.0, 0.5]})
    with torch.no_grad(), pytest.raises(DoesNotFit, match="batches of their own"):
        net(x)
    studio.blend(net, {"a": Strength(mask=MASK)})
    with pytest.raises(Exception, match="no regions"):
        torch.compile(net, backend="eager", fullgraph=True)(x)


def test_a_bare_parameter_is_refused_by_name():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(WIDE, WIDE))

        def forward(self, x):
            return x @ self.scale

    net = Scaled()
    studio.attach(net, studio.LoRA(rank=2, targets=("scale",), init="orthogonal"), name="a")
    assembly_at(net).levels.regions = Here()
    studio.blend(net, {"a": Strength(mask=MASK)})
    with pytest.raises(DoesNotFit, match="cannot act on scale"):
        net(torch.randn(2, LEVELS.numel(), WIDE))
