"""``studio families`` and the page that is made of it."""

from __future__ import annotations

import json

from click.testing import CliRunner

from studio.cli import main
from studio.families import FAMILIES, open_base
from tiny_pipelines import BUILDERS, build


def studio(*words: str) -> str:
    done = CliRunner().invoke(main, ["families", *words])
    assert done.exit_code == 0, done.stderr
    return done.stdout


def test_the_page_is_made_of_the_registry(root):
    page = (root / "docs" / "families.md").read_text(encoding="utf-8")
    assert page == studio("--markdown"), "run: studio families --markdown > docs/families.md"


def test_every_family_is_listed():
    text, listed = studio(), json.loads(studio("--json"))
    assert list(listed) == list(FAMILIES)
    for name, family in FAMILIES.items():
        assert name in text and family.title in text
        assert [model["id"] for model in listed[name]["models"]] == [model.id for model in family.models]
        assert set(listed[name]["text_encoders"]) == set(family.readers)
    assert studio("--quiet") == ""


def test_public_bases_draw_as_their_rows_say():
    """What a pipeline of each kind draws with is what one of the row's public bases is listed with."""
    for kind in BUILDERS:
        base = open_base(build(kind))
        assert base.defaults in [model.defaults for model in base.family.models], kind
