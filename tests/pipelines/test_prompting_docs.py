"""Every prompt on the page about prompts is drawn, or refused, as the page says."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest

import studio
from studio.errors import UsageError
from studio.pipelines import ImagePipeline
from studio.pipelines.prompting.spoken import spoken
from studio.pipelines.remarks import Remark

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "prompts.md").read_text(encoding="utf-8")


def shown(kind: str) -> list[str]:
    blocks = re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.M | re.S)
    return [line.partition("  #")[0].rstrip() for block in blocks for line in block.splitlines()]


@pytest.fixture(scope="module")
def pipe():
    opened = ImagePipeline.open("emoji")
    for name in ("robot", "ink"):
        studio.attach(opened.pipe, studio.LoRA(rank=2, targets="attention"), name=name, seed=0)
    studio.blend(opened.pipe, {})
    return opened


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("wildcards")
    (made / "thing").mkdir()
    (made / "colour.txt").write_text("# colours\nred\n\n{dark|light} blue\n")
    (made / "thing" / "animal.txt").write_text("tiger\npanda\n")
    return made


@pytest.mark.parametrize("prompt", shown("prompts"))
def test_a_prompt_of_the_page_is_drawn(pipe, folder, prompt):
    with warnings.catch_warnings():
        warnings.simplefilter("error", Remark)
        (image,) = pipe.generate(prompt, seeds=3, steps=8, guidance=1.0, wildcards=folder)
    assert image.size == (64, 64)


@pytest.mark.parametrize("prompt", shown("refused"))
def test_what_the_page_says_is_refused_is_refused(pipe, folder, prompt):
    with pytest.raises(UsageError) as refused:
        pipe.generate_iter(["tiger", prompt], steps=8, wildcards=folder)
    assert len(str(refused.value)) < 400


def test_the_page_shows_all_there_is():
    assert len(shown("prompts")) > 30 and len(shown("refused")) > 10
    code = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
    assert len(code) == 1
    exec(compile(code[0], "prompts.md", "exec"), {})  # noqa: S102


def test_the_long_one_takes_several_chunks(pipe):
    from studio.pipelines.request import Request

    (long,) = [prompt for prompt in shown("prompts") if "whiskers" in prompt]
    said = spoken(pipe.base, Request(prompt=long, width=64, height=64, guidance=1.0))
    assert said.length > 24 and said.length % 24 == 0
