"""Settings and words that no program expects, on the command line: one sentence, of a length that can be read."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from studio.cli import main
from studio.config import read_toml
from studio.errors import BadConfig, BadFile
from studio.trainers import DreamBooth, Style


def refused(*words, code=2):
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
    return line


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("inputs = 3\nfree = 3", "has inputs=3, where a run.toml has a table"),
        ("[inputs]\n[free]\n[task]\nlearning_rates = 3", "has learning_rates=3"),
        ("[inputs]\n[free]\npreviews = 3", "has previews=3"),
        ("training = 3\n[inputs]\n[free]", "has training=3"),
        ("steps = " + "9" * 5000, "is not valid TOML"),
        ("learning_rate = " + "9" * 400, "learning_rate must be"),
        ('"' + "k" * 5000 + '" = 1', "there is no setting"),
    ],
)
def test_files_of_settings(tiny_base, photos, tmp_path, text, part):
    file = tmp_path / "settings.toml"
    file.write_text(text)
    words = ("dreambooth", tiny_base, photos, "--instance-prompt", "sks dog", "-o", tmp_path / "run", "--config", file)
    said = refused(*words)
    assert part in said and len(said) < 1300


@pytest.mark.parametrize("word", ["steps=" + "9" * 5000, "rank=" + "[" * 50_000, "k" * 5000 + "=1"])
def test_words_of_settings(tiny_base, photos, tmp_path, word):
    said = refused(
        "dreambooth", tiny_base, photos, "--instance-prompt", "sks dog", "-o", tmp_path / "run", "--set", word
    )
    assert len(said) < 1300


def test_the_end_of_a_long_sentence_can_be_read(tmp_path):
    said = refused("generate", "emoji", f"<{'x' * 5000}>", "-o", tmp_path / "out")
    assert " … " in said and said.endswith("write \\< for the character)")


@pytest.mark.parametrize("digits", [4301, 100_000])
def test_numbers_of_more_digits_than_python_reads(tmp_path, digits):
    (tmp_path / "x.toml").write_text("steps = " + "9" * digits)
    with pytest.raises(BadFile, match="is not valid TOML"):
        read_toml(tmp_path / "x.toml")


@pytest.mark.parametrize(
    "values",
    [
        {"resolution": 10_000_000},
        {"resolution": (64, 10_000)},
        {"resolution": 0},
        {"preview_steps": 0},
        {"preview_guidance": float("nan")},
        {"preview_guidance": -1.0},
        {"preview_seeds": (-1,)},
        {"preview_seeds": (2**63,)},
        {"gamma": float("nan")},
        {"text_encoder_learning_rate": float("inf")},
        {"instance_prompt": "sks dog\ud800"},
        {"instance_prompt": "\u200b"},
        {"class_prompt": ""},
        {"class_prompt": ("a photo of dog", " ")},
        {"prior_weight": float("inf")},
    ],
    ids=lambda values: next(iter(values)),
)
def test_what_is_wrong_is_named_before_a_base_is_opened(values):
    (name,) = values
    with pytest.raises(BadConfig, match=name):
        DreamBooth(**{"base": None, "instance_images": "x", "instance_prompt": "a photo of sks dog", **values})


@pytest.mark.parametrize("trigger", ["\ud800", "\u200b", " "])
def test_a_trigger_is_a_text(trigger):
    with pytest.raises(BadConfig, match="trigger"):
        Style(base=None, images="x", trigger=trigger)


@pytest.mark.parametrize("character", "\u202e\u2066\u2028\u200f\x9b\x1b")
def test_json_for_a_terminal_holds_nothing_that_it_acts_on(photos, character):
    (photos / "photo0.txt").write_text(f"a {character}dog", encoding="utf-8")
    result = CliRunner().invoke(main, ["check", str(photos), "--instance-prompt", "sks dog", "--json"])
    assert character not in result.stdout
    assert result.exit_code == 0 and json.loads(result.stdout)["captions"] == 1


@pytest.mark.parametrize("leads", ["nowhere", "sheet.png"])
def test_a_sheet_is_not_written_over_a_link(tiny_base, tmp_path, leads):
    (tmp_path / "sheet.png").symlink_to(leads)
    words = ("generate", tiny_base, "x", "--steps", "1", "-o", tmp_path / "out", "--grid", tmp_path / "sheet.png")
    assert "is there already" in refused(*words)
    assert str((tmp_path / "sheet.png").readlink()) == leads and not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_inspect_finds_nan_where_it_reads_the_values(tmp_path, number):
    tensors = {"lin.lora_A.weight": torch.ones(2, 8), "lin.lora_B.weight": torch.full((12, 2), number)}
    save_file(tensors, tmp_path / "a.safetensors")
    assert CliRunner().invoke(main, ["inspect", str(tmp_path / "a.safetensors")]).exit_code == 0
    said = refused("inspect", tmp_path / "a.safetensors", "--values", code=3)
    assert "'lin.lora_B.weight' hold NaN or infinite numbers" in said


def test_inspect_with_values_says_nothing_of_sound_ones(tmp_path):
    save_file(
        {"lin.lora_A.weight": torch.ones(2, 8), "lin.lora_B.weight": torch.ones(12, 2)}, tmp_path / "a.safetensors"
    )
    assert CliRunner().invoke(main, ["inspect", str(tmp_path / "a.safetensors"), "--values"]).exit_code == 0
