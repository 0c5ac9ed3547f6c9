"""The fake mode: what is done without asking torch's own has the sizes that real tensors have."""

from __future__ import annotations

import pytest
import torch

from studio.planning.fakes import Fakes
from studio.planning.known import KnownMode

WIDE, LONG = (1, 8, 4, 4), (16, 8)
CASES = {
    "view": lambda x, y: x.permute(0, 2, 3, 1).view(1, 16, 8),  # torch's Python has other strides where a side is 1
    "t": lambda x, y: y.t(), "transpose": lambda x, y: x.transpose(1, 2), "expand": lambda x, y: x.expand(3, 8, 4, 4),
    "unsqueeze": lambda x, y: y.unsqueeze(1), "detach": lambda x, y: x.detach(),
    "linear": lambda x, y: torch.nn.functional.linear(x.permute(0, 2, 3, 1), y),
    "linear with a bias": lambda x, y: torch.nn.functional.linear(y, y, y[:, 0]),
    "add": lambda x, y: x + x.transpose(2, 3), "mul": lambda x, y: x.mul(x[:, :1]), "div": lambda x, y: x / 3,
    "to": lambda x, y: x.permute(0, 2, 3, 1).to(torch.bfloat16), "clone": lambda x, y: x.transpose(1, 2).clone(),
    "zeros_like": lambda x, y: torch.zeros_like(x.transpose(1, 2)), "add_": lambda x, y: y.add_(y),
    "copy_": lambda x, y: x.copy_(torch.zeros_like(x)), "addmm_": lambda x, y: y.addmm_(y.clone(), y[:8].clone()),
    "whole numbers beside": lambda x, y: x + torch.ones(4, dtype=torch.int64),
}  # fmt: skip


def outline(tensor):
    return tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype


@pytest.mark.parametrize("name", CASES)
def test_sizes_are_those_of_real_tensors(name):
    """Shape, strides, offset and type, the first time and again."""
    fakes = Fakes()
    real = CASES[name](torch.ones(WIDE), torch.ones(LONG))
    for _ in range(2):
        with fakes.entered():
            fake = CASES[name](fakes.tensor(WIDE), fakes.tensor(LONG))
        assert outline(fake) == outline(real)


def test_a_view_shares_its_storage_and_a_copy_has_its_own():
    fakes = Fakes()
    x = fakes.tensor(LONG)
    with fakes.entered():
        assert x.t().untyped_storage()._cdata == x.view(128).untyped_storage()._cdata == x.untyped_storage()._cdata
        assert x.clone().untyped_storage()._cdata != x.untyped_storage()._cdata


def test_what_follows_from_known_numbers_is_known():
    with KnownMode():
        lengths = torch.tensor([3, 1])
        mask = torch.arange(4)[None] < lengths[:, None]
        assert int(mask.sum()) == 4
        assert torch.zeros(2, 4, 5)[mask].shape == (4, 5)
