"""Registries: sorted, no name twice, the nearest name in the error."""

from __future__ import annotations

import pytest

from studio.errors import (
    BadFile,
    NothingTrained,
    PartialLoad,
    Refused,
    StudioError,
    UnknownName,
    UsageError,
    nearest,
)
from studio.registry import Registry


@pytest.fixture
def methods() -> Registry[int]:
    registry: Registry[int] = Registry("method")
    for number, name in enumerate(["lora", "dora", "ia3"]):
        registry.add(name, number)
    return registry


def test_order_is_sorted_and_size_known(methods):
    assert list(methods) == ["dora", "ia3", "lora"]
    assert len(methods) == 3 and "ia3" in methods and "loha" not in methods


def test_an_unknown_name_names_the_nearest(methods):
    with pytest.raises(UnknownName) as error:
        methods["lorra"]
    assert str(error.value) == "no method is named 'lorra'; did you mean 'lora'? (known: dora, ia3, lora)"


def test_a_taken_name_is_refused_and_keeps_its_entry(methods):
    with pytest.raises(ValueError, match="'lora' is registered already"):
        methods.add("lora", 9)
    assert methods["lora"] == 0


def test_the_decorator_registers_and_returns(methods):
    @methods.register("vera")
    def entry() -> None: ...

    assert methods["vera"] is entry


def test_exit_codes_follow_the_kind_of_error():
    assert StudioError.exit_code == 1
    assert UsageError.exit_code == UnknownName.exit_code == BadFile.exit_code == 2
    assert Refused.exit_code == PartialLoad.exit_code == NothingTrained.exit_code == 3


def test_nearest_is_stable():
    assert nearest("to_qq", ["to_k", "to_v", "to_q"], 2) == ["to_q", "to_k"]
    assert nearest("x", []) == []
