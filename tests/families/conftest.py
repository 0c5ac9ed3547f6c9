"""Folders of tiny pipelines, for the files here that open them."""

from __future__ import annotations

import pytest

from tiny_pipelines import build


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Returns a function that gives the folder of a tiny pipeline."""
    made = {}

    def get(kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("folders") / kind
            build(kind).save_pretrained(made[kind])
        return made[kind]

    return get
