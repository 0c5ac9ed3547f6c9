"""Tensors that multiply by accident: of the right number of numbers, and of no layer's shape."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import studio
from studio.errors import PartialLoad, Refused, StudioError
from tests.support.tiny_pipelines import build


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide, self.conv = nn.Linear(8, 12), nn.Conv2d(4, 6, 3, padding=1)


def loaded(folder, tensors, metadata=None, model=None):
    save_file({key: one.contiguous() for key, one in tensors.items()}, folder / "a.safetensors", metadata=metadata)
    return studio.load(Net() if model is None else model, folder / "a.safetensors")


TUCKER = {"lora_down.weight": (2, 4, 1, 1), "lora_up.weight": (6, 2, 1, 1), "lora_mid.weight": (2, 2, 3, 3)}
OFF = {
    "LoKr's first factor has the kernel": ("conv", {"lokr_w1": (3, 2, 3, 3), "lokr_w2": (2, 2)}),
    "LoKr's second factor has another kernel": ("conv", {"lokr_w1": (2, 2), "lokr_w2": (3, 3, 2, 3)}),
    "blocks that are turned are square": ("wide", {"oft_blocks": (3, 1, 4)}),
    "a core of one rank for a down of two": ("conv", {**TUCKER, "lora_mid.weight": (2, 1, 3, 3)}),
    "a down of no rank beside others": ("conv", {**TUCKER, "lora_down.weight": (0, 4, 1, 1)}),
    "a core with another kernel": ("conv", {**TUCKER, "lora_mid.weight": (2, 2, 9)}),
}


@pytest.mark.parametrize("case", OFF)
def test_what_multiplies_by_accident_is_refused(case, tmp_path):
    path, shapes = OFF[case]
    with pytest.raises(StudioError, match=path):
        loaded(tmp_path, {f"lycoris_{path}.{part}": torch.randn(shape) for part, shape in shapes.items()})


def test_ones_behind_a_kernel_are_nothing(tmp_path):
    """A core ``(r, r, 3, 3, 1, 1)`` is that of ``(r, r, 3, 3)``."""
    tensors = {f"lycoris_conv.{part}": torch.randn(shape) for part, shape in TUCKER.items()}
    outputs = []
    for axes in ((3, 3), (3, 3, 1, 1)):
        net = Net()
        tensors["lycoris_conv.lora_mid.weight"] = tensors["lycoris_conv.lora_mid.weight"].reshape(2, 2, *axes)
        loaded(tmp_path, tensors, model=net)
        outputs.append(net.conv(torch.ones(1, 4, 5, 5)))
    assert torch.equal(*outputs)


def test_a_pair_of_a_fused_layer_has_one_rank(tmp_path):
    pipe = build("flux1")
    name = "single_blocks.0.linear1"
    width = pipe.transformer.single_transformer_blocks[0].attn.to_q.in_features
    rows = 3 * width + pipe.transformer.single_transformer_blocks[0].proj_mlp.out_features
    tensors = {f"{name}.lora_A.weight": torch.randn(4, width), f"{name}.lora_B.weight": torch.randn(rows, 2)}
    with pytest.raises(StudioError, match="other ranks"):
        loaded(tmp_path, tensors, model=pipe)


def test_nan_where_nothing_is_read_is_nan(tmp_path):
    """LyCORIS takes the diagonal of a block from itself, and NaN is left of it."""
    blocks = torch.zeros(3, 4, 4)
    blocks[1, 2, 2] = float("inf")
    with pytest.raises(Refused, match="oft_blocks"):
        loaded(tmp_path, {"lycoris_wide.oft_blocks": blocks})


def test_a_false_rank_in_the_studios_entry_is_not_a_scale(tmp_path):
    """An alpha that was not given follows the rank, which is that of the tensors."""
    down, up = torch.randn(2, 8), torch.randn(12, 2)
    entry = {"method": "lora", "config": {"rank": 9_999_999_999}}
    net = Net()
    report = loaded(
        tmp_path, {"wide.lora_A.weight": down, "wide.lora_B.weight": up}, {"studio": json.dumps(entry)}, net
    )
    x = torch.randn(3, 8)
    expected = nn.functional.linear(x, Net().wide.weight + up @ down, Net().wide.bias)
    assert torch.allclose(net.wide(x), expected, atol=1e-5) and report.notes


def test_a_layer_that_is_named_in_two_ways_is_refused(tmp_path):
    """PEFT's prefix before one of a pair: whose config would say the scale?"""
    tensors = {"wide.lora_A.weight": torch.randn(2, 8), "base_model.model.wide.lora_B.weight": torch.randn(12, 2)}
    with pytest.raises(StudioError, match="PEFT folder"):
        loaded(tmp_path, tensors)
    good = {"conv.lora_A.weight": torch.randn(2, 4, 3, 3), "conv.lora_B.weight": torch.randn(6, 2, 1, 1)}
    with pytest.raises(PartialLoad, match="2 of the 4 keys"):
        loaded(tmp_path, tensors | good)


def test_a_bound_holds_numbers_that_fp32_cannot_square(tmp_path):
    """Constrained OFT: ``‖Q‖ <= alpha · rows``, however far beyond it the blocks are."""
    blocks = torch.zeros(3, 4, 4, dtype=torch.float64)
    blocks[1, 1, 2] = 3e38
    net = Net()
    tensors = {"lycoris_wide.oft_blocks": blocks.float(), "lycoris_wide.alpha": torch.tensor(0.01)}
    loaded(tmp_path, tensors, model=net)
    skew = blocks - blocks.mT
    skew *= 0.01 * 12 / skew.norm()
    one = torch.eye(4, dtype=torch.float64)
    turned = torch.block_diag(*torch.linalg.solve(one - skew, one + skew, left=False))
    x = torch.randn(3, 8)
    expected = x.double() @ (turned.mT @ Net().wide.weight.double()).T + Net().wide.bias.double()
    assert torch.allclose(net.wide(x).double(), expected, atol=1e-5)
