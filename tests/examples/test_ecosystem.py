"""The scripts that train adapters by transformers' and TRL's trainers run without peft, and their files load."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

from studio.pipelines import TextPipeline

WITHOUT_PEFT = """
import importlib.machinery, runpy, sys
find = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = lambda name, *more: None if name == "peft" else find(name, *more)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# script -> its file, and what its base is opened as
SCRIPTS = {
    "transformers_trainer": ("answers", None),
    "trl_sft": ("answers", None),
    "trl_dpo": ("short", None),
    "trl_reward": ("judge", "classifier"),
    "trl_grpo": ("brief", None),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name.startswith("trl") else []) for name in SCRIPTS]
)
def test_it_trains_without_peft_and_its_file_acts(name, root, tmp_path):
    if name.startswith("trl") and importlib.util.find_spec("trl") is None:
        pytest.skip("TRL is not installed: the extra llm has it")
    file, kind = SCRIPTS[name]
    script = root / "examples" / f"{name}.py"
    done = subprocess.run(  # the scripts' own checks: what is lost becomes less, peft is not imported
        [sys.executable, "-c", WITHOUT_PEFT, str(script), "4"], cwd=tmp_path, capture_output=True, text=True,
        timeout=600, env={**os.environ, "PYTHONPATH": ""}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    pipe = TextPipeline.open("facts", kind=kind, labels=("reward",) if kind else None)
    tokens = torch.tensor([pipe.base.tokens("Tin is", chat=False)[0]])
    with torch.no_grad():
        bare = pipe.model(input_ids=tokens).logits
        report = pipe.load(tmp_path / f"{file}.safetensors")
        assert not report.ignored and not torch.equal(pipe.model(input_ids=tokens).logits, bare)
