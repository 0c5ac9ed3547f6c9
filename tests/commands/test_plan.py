"""``studio plan`` on the command line."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from PIL import Image

from studio.cli import main
from studio.trainers.forecast import plan


def call(*words):
    return CliRunner().invoke(main, ["plan", *words])


def test_options_are_those_of_the_training_commands(tmp_path):
    """The words of a dreambooth command give what the settings of a forecast give; what decides nothing is named."""
    file = tmp_path / "plan.png"
    words = ("--rank", "4", "--batch-size", "2", "--class-prompt", "a photo of dog", "--steps", "7", "--seed", "1",
             "--set", "gradient_checkpointing=true", "--picture", str(file), "--json")  # fmt: skip
    result = call("emoji", *words)
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    import studio

    same = plan("emoji", adapter=studio.LoRA(rank=4, targets="attention+mlp"), batch_size=2, prior="self",
                gradient_checkpointing=True)  # fmt: skip
    assert facts["peak"] == same.peak and facts["trained"] == same.trained
    assert "seed, steps decide nothing of what a training takes" in result.stderr
    with Image.open(file) as image:
        assert image.size == (1920, 1040)


def test_a_language_base_and_a_limit():
    result = call("facts", "--max-length", "64", "--batch-size", "4", "--fit", "1GB")
    assert result.exit_code == 0, result.output
    assert "<- peak" in result.stdout and "it fits as it is" in result.stdout


@pytest.mark.parametrize(("task", "words", "same"), [
    ("classify", ("--set", "keep_head=true"), {"own": {"keep_head": True}}),
    ("embed", ("--set", "group=4", "--set", "temperature=0.1"), {"own": {"group": 4}}),
    ("preference", ("--set", "loss=kto", "--set", "beta=0.3"), {"own": {"loss": "kto"}}),
    ("grpo", ("--set", "max_new_tokens=8", "--set", "reward=exact"), {"own": {"max_new_tokens": 8}}),
    ("code", ("--set", "holes=2"), {}), ("reward", (), {}),
], ids=str)  # fmt: skip
def test_tasks_are_planned_with_their_own_settings(task, words, same):
    """By the names of `studio tune`; what decides nothing is named."""
    result = call("facts", "--task", task, "--max-length", "24", "--batch-size", "2", *words, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["peak"] == plan("facts", task=task, length=24, batch_size=2, **same).peak
    idle = {word.partition("=")[0] for word in words if "=" in word} - {*same.get("own", {})}
    assert all(f"{name} decides nothing" in result.stderr for name in idle)


@pytest.mark.parametrize(("words", "sentence"), [
    ((), "studio plan needs BASE"),
    (("sdxxl",), "did you mean 'sdxl'"),
    (("emoji", "--max-length", "9"), "--max-length is of language models"),
    (("emoji", "--set", "gradient_checkpoint=true"), "gradient_checkpointing"),
    (("emoji", "--fit", "much"), "no size of memory"),
    (("facts", "--max-length", "16", "--fit", "1MB"), "nothing reaches"),
    (("emoji", "--task", "dream"), "did you mean 'dreambooth'"),
    (("facts", "--task", "embed", "--set", "group=1"), "group must be at least 2"),
    (("facts", "--task", "preference", "--set", "loss=sft"), "loss"),
    (("facts", "--task", "caption"), "no vision-language model of"),
    (("emoji", "--attend", "eager", "--set", "attention=sdpa"), "attention is given twice"),
    (("emoji", "--dtype", "bf16", "--set", "precision=fp32"), "precision is given twice"),
])  # fmt: skip
def test_what_is_wrong_is_said_with_exit_code_2(words, sentence):
    result = call(*words)
    assert result.exit_code == 2
    assert sentence in result.stderr
