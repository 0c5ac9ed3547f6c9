"""Each loss against its formula, written out with Python's own floats, and against where its gradient must point."""

from __future__ import annotations

import math

import pytest
import torch

from studio.trainers.language.preference_losses import bradley_terry, dpo, ipo, kto, orpo

PAIRS = [(0.3, -1.2), (-4.0, 2.5), (0.0, 0.0), (7.0, 6.5)]
BETA = 0.3


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def both(pairs=PAIRS):
    return torch.tensor(pairs, dtype=torch.float64).unbind(1)


def close(found, wanted):
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_dpo():
    close(dpo(*both(), BETA), [-math.log(sigmoid(BETA * (c - r))) for c, r in PAIRS])
    assert float(dpo(*both(), BETA)[2]) == math.log(2), "nothing has changed yet"


def test_ipo():
    close(ipo(*both(), BETA), [(c - r - 1 / (2 * BETA)) ** 2 for c, r in PAIRS])
    least = torch.tensor([1 / (2 * BETA)], dtype=torch.float64)
    assert float(ipo(least, 0 * least, BETA)) == 0, "the margin that it aims at"


def test_kto():
    h, good = torch.tensor([0.3, -4.0, 0.0], dtype=torch.float64), torch.tensor([True, False, True])
    z, desirable, undesirable = 0.2, 1.5, 0.5
    wanted = [
        desirable * (1 - sigmoid(BETA * (0.3 - z))),
        undesirable * (1 - sigmoid(BETA * (z + 4.0))),
        desirable * (1 - sigmoid(BETA * (0.0 - z))),
    ]
    close(kto(h, good, torch.tensor(z, dtype=torch.float64), BETA, desirable, undesirable), wanted)


def test_orpo():
    means = [(-0.3, -1.2), (-4.0, -2.5), (-1.0, -1.0), (-1e-3, -30.0)]
    odds = [[math.exp(mean) / (1 - math.exp(mean)) for mean in pair] for pair in means]
    wanted = [
        -c - BETA * math.log(sigmoid(math.log(above) - math.log(below)))
        for (c, _), (above, below) in zip(means, odds, strict=True)
    ]
    close(orpo(*both(means), BETA), wanted)
    assert torch.isfinite(orpo(torch.zeros(1), torch.full((1,), -200.0), BETA)).all(), "a certain answer has a loss too"


def test_bradley_terry():
    close(bradley_terry(*both()), [-math.log(sigmoid(c - r)) for c, r in PAIRS])


@pytest.mark.parametrize("loss", [lambda c, r: dpo(c, r, BETA), lambda c, r: ipo(c, r, BETA),
                                  lambda c, r: orpo(c - 1, r - 1, BETA), bradley_terry])  # fmt: skip
def test_a_step_raises_the_chosen_one_above_the_other(loss):
    chosen, rejected = torch.zeros(2, dtype=torch.float64, requires_grad=True), None
    rejected = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    loss(chosen, rejected).sum().backward()
    assert (chosen.grad < 0).all() and (rejected.grad > 0).all()
