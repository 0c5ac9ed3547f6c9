"""Every method in every format of every family, there and back: docs/conversions.md says what is found."""

from __future__ import annotations

import json
import sys

import pytest

from product import ROOT
from studio.files import common_formats

if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.conversions import KEPT, ROWS, outcomes  # noqa: E402
from benchmarks.conversions_page import PAGE, page  # noqa: E402
from benchmarks.denoisers import DENOISERS  # noqa: E402

AGAIN = "run: python -m benchmarks.conversions"
# rows whose cells are exact, of the same change, stated as a LoRA, refused; with fused layers and without
QUICK = {
    "flux1": ("lora, ranks and alphas by layer", "dora", "loha", "oft, of outputs", "adalora"),
    "sana": ("lokr", "shira"),
}


@pytest.fixture(scope="module")
def kept():
    return json.loads(KEPT.read_text(encoding="utf-8"))


def test_the_page_is_made_of_what_was_found(kept):
    assert PAGE.read_text(encoding="utf-8") == page(kept), AGAIN
    assert kept.keys() == DENOISERS.keys(), AGAIN
    for family in kept.values():
        assert family.keys() == ROWS.keys() and all(own.keys() == set(common_formats()) for own in family.values()), (
            AGAIN
        )


@pytest.mark.parametrize("family", QUICK)
def test_some_of_it_is_so(family, kept):
    found = outcomes(family, {row: ROWS[row] for row in QUICK[family]})
    assert found == {row: kept[family][row] for row in QUICK[family]}, AGAIN


@pytest.mark.slow
@pytest.mark.parametrize("family", DENOISERS)
def test_all_of_it_is_so(family, kept):
    assert outcomes(family) == kept[family], AGAIN


def test_every_method_is_exact_somewhere_and_no_cell_is_silent(kept):
    """What comes back is the file, or its change, or a sentence."""
    for family, rows in kept.items():
        for row, cells in rows.items():
            assert "exact" in cells.values() or "same change" in cells.values(), (family, row)
            for format, outcome in cells.items():
                held = outcome in ("exact", "same change", "as lora")
                assert held or len(outcome.split()) > 4, (family, row, format)
