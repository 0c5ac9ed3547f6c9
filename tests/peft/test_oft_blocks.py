"""OFT through studio.peft takes the nearest size of blocks that divides a layer, as PEFT does, and says so."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from studio.peft import OFTConfig, get_peft_model


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 4))


@pytest.mark.parametrize(
    ("asked", "sizes"),
    [
        ({"oft_block_size": 32}, (20, 16)),
        ({"oft_block_size": 8}, (10, 8)),
        ({"oft_block_size": 3}, (2, 2)),  # 2 and 4 are as near: the smaller
        ({"oft_block_size": 0, "r": 3}, (10, 8)),  # two blocks
    ],
)
def test_the_nearest_size_that_divides_is_taken_and_said(asked, sizes, tmp_path):
    config = OFTConfig(target_modules=["0", "2"], **asked)
    with pytest.warns(UserWarning, match=r"do not divide all layers; .* for 20 inputs \(0\)"):
        model = get_peft_model(net(), config)
    trained = [one for one in model.parameters() if one.requires_grad]
    expected = [(width // size, size * (size - 1) // 2) for width, size in zip((20, 16), sizes, strict=True)]
    assert [tuple(one.shape) for one in trained] == expected
    with torch.no_grad():
        for one in trained:
            one.normal_(0, 0.1)
    peft = pytest.importorskip("peft")
    model.save_pretrained(tmp_path)
    x = torch.randn(3, 20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(net(), tmp_path)
    torch.testing.assert_close(theirs(x), model(x), rtol=1e-5, atol=1e-6)


def test_a_size_that_would_train_nothing_is_refused():
    with pytest.raises(ValueError, match="blocks of 3 do not divide the 7 inputs"):
        get_peft_model(nn.Sequential(nn.Linear(7, 4)), OFTConfig(target_modules=["0"], oft_block_size=3))
