"""Configs: dataclass, TOML, dict and key=value say the same, and what is wrong is named."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as some

from studio.config import assignments, build, check, differences, plain, read_toml, to_toml
from studio.errors import BadConfig, BadFile


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inner:
    rank: int = 8
    alpha: float | None = None

    def __post_init__(self) -> None:
        check(self)
        if self.rank < 1:
            raise BadConfig(f"rank must be at least 1, not {self.rank}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outer:
    method: ClassVar[str] = "outer"
    name: str
    rate: float = 1e-3
    targets: str | tuple[str, ...] = "attention"
    size: tuple[int, int] = (512, 512)
    prior: Literal["images", "none"] = "none"
    folder: Path | None = None
    flag: bool = False
    steps: int | None = 100
    patterns: Mapping[str, int] = dataclasses.field(default_factory=dict)
    inner: Inner = dataclasses.field(default_factory=Inner)

    def __post_init__(self) -> None:
        check(self)


FULL = Outer(
    name="sks dog", rate=0.5, targets=("to_q", "re:.*k"), size=(64, 128), prior="images", folder=Path("a") / "b",
    flag=True, steps=None, patterns={"mid.*": 4}, inner=Inner(rank=2, alpha=1.5),
)  # fmt: skip


def test_toml_and_back_is_the_same_config(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(to_toml(FULL), encoding="utf-8")
    assert build(Outer, read_toml(file)) == FULL
    assert build(Outer, plain(FULL)) == FULL


def test_none_survives_where_it_is_not_the_default():
    assert plain(FULL)["steps"] == "none"
    assert build(Outer, plain(FULL)).steps is None


@given(
    name=some.text(alphabet=some.characters(codec="utf-8"), min_size=1),
    rate=some.floats(allow_nan=False, allow_infinity=False),
    rank=some.integers(1, 10**6),
    targets=some.lists(some.text(alphabet=some.characters(codec="utf-8")), max_size=3),
)
def test_any_values_survive_toml(name, rate, rank, targets):
    import sys

    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    config = Outer(name=name, rate=rate, targets=tuple(targets), inner=Inner(rank=rank))
    assert build(Outer, tomllib.loads(to_toml(config))) == config


def test_command_line_values_take_the_type_of_their_field():
    words = [
        "name=7", "rate=1", "targets=to_q,to_k", "size=64,128", "prior=images", "folder=runs/x", "flag=true",
        "steps=none", "inner.rank=4", "inner.alpha=2",
    ]  # fmt: skip
    config = build(Outer, assignments(words))
    assert config == Outer(
        name="7", rate=1.0, targets="to_q,to_k", size=(64, 128), prior="images", folder=Path("runs/x"), flag=True,
        steps=None, inner=Inner(rank=4, alpha=2.0),
    )  # fmt: skip
    assert isinstance(config.rate, float)
    assert build(Outer, assignments(["name=x", 'targets=["to_q", "to_k"]'])).targets == ("to_q", "to_k")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"name": "x", "rte": 3}, "Outer has no field 'rte'; did you mean 'rate'? (fields: name, rate, targets,"),
        ({}, "Outer needs name, which is not given"),
        ({"name": "x", "rate": "fast"}, "Outer.rate must be a number, not 'fast'"),
        ({"name": "x", "rate": True}, "Outer.rate must be a number, not True"),
        ({"name": "x", "flag": 1}, "Outer.flag must be true or false, not 1"),
        ({"name": "x", "steps": 1.5}, "Outer.steps must be a whole number, not 1.5"),
        ({"name": 5}, "Outer.name must be a text, not 5"),
        ({"name": "x", "size": [1]}, "Outer.size must be a list of 2 (a whole number, a whole number), not [1]"),
        ({"name": "x", "targets": [3]}, "Outer.targets must be a text or a list (each entry a text), not [3]"),
        ({"name": "x", "prior": "image"}, "Outer.prior must be one of 'images', 'none', not 'image'"),
        ({"name": "x", "patterns": {"a": ""}}, "Outer.patterns must be a table (each value a whole number), not "),
        ({"name": "x", "inner": {"rnk": 3}}, "Outer.inner: Inner has no field 'rnk'; did you mean 'rank'? (fields:"),
        ({"name": "x", "inner.rank": 0}, "rank must be at least 1, not 0"),
        ({"name": "x", "inner": {}, "inner.rank": 1.5}, "Outer.inner: Inner.rank must be a whole number, not 1.5"),
    ],
)  # fmt: skip
def test_wrong_values_are_named(values: dict[str, Any], sentence: str):
    with pytest.raises(BadConfig) as error:
        build(Outer, values)
    assert sentence in str(error.value)


def test_direct_construction_is_checked_too():
    with pytest.raises(BadConfig, match="Inner.rank must be a whole number, not '8'"):
        Inner(rank="8")  # type: ignore[arg-type]
    assert Outer(name="x", targets=["a"]).targets == ("a",)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["rank"], "'rank' is not of the form key=value"),
        (["=3"], "'=3' is not of the form key=value"),
        (["rank=3", "rank=4"], "rank is given twice: '3' and '4'"),
    ],
)
def test_wrong_words_are_named(words, sentence):
    with pytest.raises(BadConfig) as error:
        assignments(words)
    assert sentence in str(error.value)


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(BadFile, match="there is no config file"):
        read_toml(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("rank = \n")
    with pytest.raises(BadFile, match=r"bad\.toml is not valid TOML: .*line 1"):
        read_toml(tmp_path / "bad.toml")
    (tmp_path / "latin.toml").write_bytes("name = 'caf\xe9'".encode("latin-1"))
    with pytest.raises(BadFile, match=r"latin\.toml is not UTF-8 text"):
        read_toml(tmp_path / "latin.toml")
    with pytest.raises(BadFile, match="is a folder, not a file"):
        read_toml(tmp_path)


def test_differences_name_the_fields():
    other = dataclasses.replace(FULL, inner=Inner(rank=3))
    assert differences(plain(FULL), plain(other)) == [
        "inner.alpha was 1.5 and is not given",
        "inner.rank was 2 and is 3",
    ]
    assert differences(plain(FULL), plain(FULL)) == []
