"""What a command says about the adapters that it loads."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner

import studio
from studio.cli import main
from studio.pipelines import ImagePipeline


@pytest.fixture
def adapter(tiny_base, tmp_path):
    """Writes an adapter that names the weights it is for."""

    def write(base_hash):
        pipe = ImagePipeline.open(tiny_base)
        studio.attach(pipe, studio.LoRA(rank=2, targets=("attn1.to_q",), init="orthogonal"), name="dog")
        with torch.no_grad():
            studio.state(pipe, "dog")[next(iter(studio.state(pipe, "dog")))].add_(0.1)
        stated = {"base": "somewhere/else", "base_hash": base_hash or pipe.base.hash}
        return studio.save(pipe, tmp_path / "dog.safetensors", name="dog", metadata=stated)

    return write


@pytest.mark.parametrize(("base_hash", "said"), [("0" * 64, True), (None, False)])
def test_other_weights_than_those_that_it_was_trained_on_are_told(tiny_base, adapter, tmp_path, base_hash, said):
    """By their hash, not by what the base is called: a copy of it is the same base."""
    words = ["generate", str(tiny_base), "a dog", "--adapter", str(adapter(base_hash)), "--steps", "1",
             "--resolution", "32", "-o", str(tmp_path / "out")]  # fmt: skip
    result = CliRunner(env={"COLUMNS": "300"}).invoke(main, words, prog_name="studio")
    assert result.exit_code == 0, result.stderr
    assert ("it was trained on other weights (somewhere/else) than those of" in result.stderr) is said


@pytest.mark.parametrize("said_by", ["the user", "the files"])
def test_a_type_that_the_cpu_emulates_is_told(said_by, cpu_has_bf16, tiny_base, tmp_path, monkeypatch):
    base, more = tiny_base, ["--dtype", "bf16"]
    if said_by == "the files":
        monkeypatch.setattr("studio.families.opening.dtype.SMALL", 0)  # as a base too large to be read in fp32
        base, more = tmp_path / "base", []
        ImagePipeline.open(tiny_base).pipe.to(torch.bfloat16).save_pretrained(base)
    words = ["generate", str(base), "a dog", "--steps", "1", "--resolution", "32", "--device", "cpu", *more,
             "-o", str(tmp_path / "out")]  # fmt: skip
    result = CliRunner(env={"COLUMNS": "300"}).invoke(main, words, prog_name="studio")
    assert result.exit_code == 0, result.stderr
    assert ("this cpu has no bf16 and emulates it" in result.stderr) is not cpu_has_bf16
