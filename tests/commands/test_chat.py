"""``studio chat``: what is typed is answered turn by turn, piece by piece, and can be kept as samples."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner

import studio
from studio.cli import main
from studio.datasets.chat import read_samples
from studio.errors import BadConfig
from studio.families.language import open_language_base
from studio.pipelines import TextPipeline
from studio.pipelines.write import write


def talk(base, lines, *words, code=0):
    result = CliRunner().invoke(main, ["chat", str(base), *map(str, words)], input="\n".join(lines), prog_name="studio")
    assert result.exit_code == code, f"{result.output}\n{result.stderr}\n{result.exception!r}"
    return result


@pytest.fixture(scope="module")
def adapter(tiny_language, tmp_path_factory):
    base = open_language_base(tiny_language)
    studio.attach(base.model, studio.LoRA(rank=2), name="odd")
    with torch.no_grad():
        for tensor in studio.state(base.model, "odd").values():
            tensor.normal_(generator=torch.Generator().manual_seed(0))
    return studio.save(base.model, tmp_path_factory.mktemp("a") / "odd.safetensors", name="odd")


def test_turns_are_answered_and_what_was_said_is_kept(tiny_language, tmp_path):
    kept = tmp_path / "talk.jsonl"
    words = ("--max-new-tokens", 6, "--save", kept, "--json")
    found = json.loads(talk(tiny_language, ["Hi?", "And?", "/new", "Paris"], *words).stdout)
    first, second = found["conversations"]
    assert [turn["role"] for turn in first] == ["user", "assistant"] * 2 and len(second) == 2
    pipe = TextPipeline.open(tiny_language)
    assert pipe.reply(first[:1], max_new_tokens=6).text == first[1]["content"]
    assert pipe.reply(first[:3], max_new_tokens=6).text == first[3]["content"], "the whole conversation is read"
    assert [sample.turns[0][1] for sample in read_samples(kept).items] == ["Hi?", "Paris"]


def test_blends_change_in_the_middle(tiny_language, adapter):
    lines = ["Hi?", "/new", "/blend", "Hi?", "/new", "/blend odd=0.5", "Hi?"]
    found = json.loads(talk(tiny_language, lines, "--adapter", adapter, "--max-new-tokens", 6, "--json").stdout)
    said = [one[1]["content"] for one in found["conversations"]]
    alone = TextPipeline.open(tiny_language).reply([{"role": "user", "content": "Hi?"}], max_new_tokens=6).text
    assert said[1] == alone and said[0] != alone


def test_what_is_wrong_is_told_and_the_talk_goes_on(tiny_language):
    result = talk(tiny_language, ["/blend ood=1", "/nothing", "Say <end> now", "Hi?", "/quit"], "--max-new-tokens", 3)
    for sentence in ("'ood'", "there is no /nothing", "holds '<end>'"):
        assert sentence in result.stderr
    assert "Traceback" not in result.output


def test_what_was_said_before_ctrl_c_is_kept(tiny_language, tmp_path):
    kept = tmp_path / "new" / "talk.jsonl"
    words = [sys.executable, "-m", "studio", "chat", str(tiny_language), "--max-new-tokens", "4", "--save", str(kept)]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        running.stdin.write("Hi?\n")
        running.stdin.flush()
        assert running.stdout.readline()
        running.send_signal(signal.SIGINT)
        told = running.stderr.read()
    assert running.returncode == 130 and "Traceback" not in told and "1 conversations added" in told
    assert [sample.turns[0][1] for sample in read_samples(kept).items] == ["Hi?"]


def test_conversations_are_added_behind_those_that_are_there(tiny_language, tmp_path):
    kept, before = tmp_path / "talk.jsonl", '{"messages": [{"role": "user", "content": "a"}]}'
    kept.write_text(before)
    talk(tiny_language, ["Hi?"], "--max-new-tokens", 3, "--save", kept)
    lines = kept.read_text().splitlines()
    assert lines[0] == before and json.loads(lines[1])["messages"][0]["content"] == "Hi?"
    talk(tiny_language, [], "--save", tmp_path / "none.jsonl")
    assert not (tmp_path / "none.jsonl").exists(), "nothing was said"
    assert "no file that conversations" in talk(tiny_language, ["Hi?"], "--save", tmp_path, code=2).stderr


def test_a_conversation_beyond_the_context_is_refused_and_begins_anew(tiny_language):
    lines = ["Hi? " * 400, "/new", "Hi?"]
    result = talk(tiny_language, lines, "--max-new-tokens", 3, "--json")
    assert "begin anew with /new" in result.stderr
    assert [len(one) for one in json.loads(result.stdout)["conversations"]] == [2]


def test_what_does_not_write_is_no_partner():
    assert "transcribe" in talk("speech", ["Hi?"], code=2).stderr


@pytest.mark.parametrize("name", ["tiny", "words"])
def test_pieces_make_the_text(tiny_language, name):
    base = open_language_base(tiny_language if name == "tiny" else name)
    pieces = []
    asked = "Hi?" if name == "tiny" else "French: 81"
    (made,) = write(base, [asked], chat=False, max_new_tokens=20, tell=pieces.append)
    assert "".join(pieces) == made.text and len(pieces) > 1
    with pytest.raises(BadConfig, match="give one prompt"):
        write(base, ["a", "b"], chat=False, max_new_tokens=2, tell=pieces.append)


def test_an_encoder_reads_a_text_in_a_batch_as_alone():
    """BART counts positions from the left, so that filling may stand on the right alone."""
    base = open_language_base("words")
    texts = ["French: 81", "Italian: nine hundred ninety-nine", "Dutch: 7"]
    together = [made.text for made in write(base, texts, chat=False, max_new_tokens=24)]
    alone = [write(base, [text], chat=False, max_new_tokens=24)[0].text for text in texts]
    assert together == alone and alone[0] == "quatre-vingt-un"
