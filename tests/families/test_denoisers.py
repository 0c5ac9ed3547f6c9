"""The denoisers of ``benchmarks.families``: one of every family, called as its row says."""

from __future__ import annotations

import sys

import pytest
import torch

from product import ROOT
from studio.families import FAMILIES, family_of

sys.path.insert(0, str(ROOT))
from benchmarks.denoisers import DENOISERS  # noqa: E402


def test_there_is_one_of_every_family():
    assert {denoiser.family for denoiser in DENOISERS.values()} == set(FAMILIES)


@pytest.mark.parametrize("kind", DENOISERS)
def test_it_is_of_its_family_and_as_large_as_it_says(kind):
    import diffusers

    denoiser = DENOISERS[kind]
    with torch.device("meta"):
        module = getattr(diffusers, denoiser.cls)(**denoiser.config)
    assert family_of(module).name == denoiser.family
    assert 5e6 < sum(parameter.numel() for parameter in module.parameters()) < 1e8


def test_a_family_is_measured():
    from benchmarks.families import bytes_kept, forward, missed, ours

    denoiser = DENOISERS["pixart-sigma"]
    module = denoiser.make()
    base = forward(denoiser, module)()
    adapted = ours(denoiser, module, 1)
    assert not torch.equal(forward(denoiser, adapted)(), base)
    assert bytes_kept(denoiser, adapted) > base.nbytes
    assert missed([{"case": "A", "one / base": 1.2}, {"case": "B", "one / base": 1.0}]) == [
        "one / base: the goal is 1.05 at most; above it: A 1.20"
    ]
