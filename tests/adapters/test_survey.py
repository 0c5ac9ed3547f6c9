"""The list of methods: every method says what it is, and the docs say what the registry says."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from studio.adapters import METHODS
from studio.cli import main
from studio.survey import LAYERS, coverage, formula_of, markdown, papers_of

DOCS = Path(__file__).parents[2] / "docs" / "methods.md"


@pytest.mark.parametrize("method", METHODS)
def test_a_method_states_its_formula_and_its_paper(method: str) -> None:
    config = METHODS[method]
    assert "=" in formula_of(config), f"the docstring of {config.__name__} has no formula in double backquotes"
    papers = papers_of(config)
    assert papers and all(title and address.startswith("https://") for title, address in papers)


@pytest.mark.parametrize("method", METHODS)
def test_a_refusal_is_one_sentence_that_names_the_method_or_the_layer(method: str) -> None:
    for cell in coverage(method):
        assert "\n" not in cell.refusal and len(cell.refusal) < 400
        assert cell.refusal == "" or len(cell.refusal) > 30, (cell.layer, cell.refusal)


def test_the_docs_are_what_the_registry_says() -> None:
    assert DOCS.read_text(encoding="utf-8") == markdown(), "run: studio methods --markdown > docs/methods.md"


def test_the_command_lists_every_method_and_layer() -> None:
    result = CliRunner().invoke(main, ["methods", "--layers", "--json"])
    assert result.exit_code == 0, result.output
    import json

    content = json.loads(result.stdout)
    assert set(content) == set(METHODS)
    assert all(set(entry["layers"]) == set(LAYERS) for entry in content.values())
