"""What somebody meets in the first hour: nothing raw on the terminal, the truth about files, checks before bases."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from studio.cli import main
from studio.commands.show import shell

RAW = "\x1b]0;title\x07"


def studio(*words: object, code: int = 0):
    result = CliRunner().invoke(main, [str(word) for word in words], prog_name="studio")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, f"exit code {result.exit_code}\n{result.stdout}\n{result.stderr}"
    assert not {character for character in result.output if ord(character) < 32} - {"\n"}
    assert result.output.encode()
    return result


def pair(*, width: int = 8, name: str = "unet.mid_block.attentions.0.proj_in") -> dict[str, torch.Tensor]:
    return {f"{name}.lora_A.weight": torch.ones(2, width), f"{name}.lora_B.weight": torch.ones(width, 2)}


@pytest.mark.parametrize("json_too", [False, True])
def test_nothing_raw_reaches_the_terminal(photos, tmp_path, json_too):
    more = ["--json"] if json_too else []
    (photos / f"{RAW}.png").write_bytes(b"x")
    (photos / os.fsdecode(b"caf\xe9.png")).write_bytes(b"x")
    (photos / "photo0.txt").write_text(f"a {RAW} dog")
    said = studio("check", photos, "--trigger", "ink style", *more).output
    assert r"\x1b" in said or r"\u001b" in said
    save_file(pair(name=f"unet.{RAW}"), tmp_path / "raw.safetensors", metadata={"trigger": RAW, "name": f"x{RAW}"})
    studio("inspect", tmp_path / "raw.safetensors", *more)
    shutil.move(tmp_path / "raw.safetensors", tmp_path / os.fsdecode(b"caf\xe9.safetensors"))
    studio("inspect", tmp_path / os.fsdecode(b"caf\xe9.safetensors"), *more)
    studio("inspect", f"{RAW}.safetensors", code=2)
    studio("generate", RAW, f"a {RAW}", code=2)


def test_what_cannot_be_read_has_an_exit_code(tmp_path):
    save_file(pair(), tmp_path / "good.safetensors")
    studio("inspect", tmp_path / "good.safetensors")
    save_file({**pair(), "other": torch.ones(2)}, tmp_path / "part.safetensors")
    assert "cannot read" in studio("inspect", tmp_path / "part.safetensors", code=3).stdout
    save_file({"emb_params": torch.ones(1, 768)}, tmp_path / "words.safetensors")
    assert "textual inversion" in studio("inspect", tmp_path / "words.safetensors").stdout
    block = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    for width, title in ((768, "Stable Diffusion 1.x"), (1024, "Stable Diffusion 2.x"), (2048, "Stable Diffusion XL")):
        save_file({block: torch.ones(4, width), "first_stage_model.x": torch.ones(1)}, tmp_path / "whole.safetensors")
        said = " ".join(studio("inspect", tmp_path / "whole.safetensors", code=2).stdout.split())
        assert f"this is a whole {title} model (a checkpoint), not an adapter" in said
    told = json.loads(studio("inspect", tmp_path / "whole.safetensors", "--json", code=2).stdout)
    assert told["format"] == ""


def test_check_with_a_base_finds_what_a_training_would_refuse(photos, tiny_base):
    (photos / "photo0.txt").write_text("word " * 100)
    words = ("check", photos, "--instance-prompt", "a photo of sks robot")
    assert "photo0.png: captions longer than most text encoders read" in studio(*words).stdout
    said = studio(*words, "--base", tiny_base, code=2).stdout
    assert "error    photo0.png: the prompt 'a photo of sks robot, word word" in said and "this base reads" in said
    (photos / "photo0.txt").write_text("a robot")
    studio(*words, "--base", tiny_base)
    training = ("dreambooth", tiny_base, photos, "--instance-prompt", "a photo of sks robot", "--steps", 1)
    (photos / "photo0.txt").write_text("word " * 100)
    refused = studio(*training, "-o", photos.parent / "run", code=2).stderr
    assert "error: photo0.png: the prompt 'a photo of sks robot, word word" in refused


def test_check_says_what_the_embedded_base_cannot_draw(photos, tmp_path):
    words = ("check", "--base", "emoji", "--instance-prompt", "a photo of sks robot")
    said = studio(*words, photos).stdout
    assert "emoji draws emoji on a background of one colour and nothing else, and 5 of 5 pictures look like" in said
    studio("demo", "--photos", tmp_path / "robot")
    assert "nothing to mend" in studio(*words, tmp_path / "robot").stdout


def test_captions_in_windows_1252_are_read_on_request(photos):
    (photos / "photo0.txt").write_bytes("a robot’s head".encode("windows-1252"))
    assert "photo0.txt: is not UTF-8 text" in studio("check", photos, code=2).stdout
    assert 'reads "a robot’s head"' in studio("check", photos, "--caption-encoding", "windows-1252").stdout


def test_the_packaged_pictures_are_copied_over_nothing(tmp_path):
    folder = tmp_path / "photos"
    told = json.loads(studio("demo", "--photos", folder, "--json").stdout)
    assert [Path(file).name for file in told["photos"]] == [f"0{n}.png" for n in range(1, 7)]
    studio("demo", "--photos", folder)
    (folder / "03.png").write_bytes(b"mine")
    assert "03.png is there already and is another picture" in studio("demo", "--photos", folder, code=2).stderr
    assert (folder / "03.png").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("a b", "c"), 'studio "a b" c'),
        (("$HOME", 'say "x"', "`ls`"), "studio '$HOME' 'say \"x\"' '`ls`'"),
        (("a;rm", "", "runs/robot"), 'studio "a;rm" "" runs/robot'),
    ],
)
def test_commands_to_copy_are_quoted(words, line):
    assert shell("studio", *words) == line


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_no_memory_is_a_sentence(monkeypatch, photos, error):
    from studio.datasets import check

    def fails(*_, **__):
        raise error

    monkeypatch.setattr(check, "check_folder", fails)
    result = CliRunner().invoke(main, ["check", str(photos)], prog_name="studio")
    assert result.exit_code == 1 and "there is not enough memory for that" in result.stderr
