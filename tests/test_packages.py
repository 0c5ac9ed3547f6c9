"""Optional packages are asked for by one sentence."""

from __future__ import annotations

import sys

import pytest

from studio.errors import MissingPackage
from studio.packages import EXTRAS, need, version_of


def test_a_missing_package_names_its_extra():
    with pytest.raises(MissingPackage) as error:
        need("no_such_thing", "4-bit bases", extra="quant")
    assert str(error.value) == "4-bit bases need no_such_thing: pip install bitsandbytes torchao optimum-quanto"


def test_a_present_package_is_imported():
    assert need("tomli_w", "configs", extra="test") is sys.modules["tomli_w"]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import no_such_dependency", "its own requirement no_such_dependency is missing"),
        ("raise ImportError('libx.so')", "libx.so"),
    ],
)
def test_a_broken_package_is_told_from_a_missing_one(tmp_path, monkeypatch, source, found):
    (tmp_path / "broken_package.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingPackage) as error:
        need("broken_package", "pictures", extra="heic")
    assert found in str(error.value) and "pip install pillow-heif --force-reinstall" in str(error.value)
    sys.modules.pop("broken_package", None)


def test_an_unknown_extra_is_our_own_mistake():
    with pytest.raises(KeyError):
        need("json", "x", extra="qant")
    assert "quant" in EXTRAS


def test_versions():
    assert version_of("pytest") == pytest.__version__
    assert version_of("no-such-thing") is None
