"""Text samples: the forms of a line, and what is refused, each by its line number."""

from __future__ import annotations

import json

import pytest

from studio.datasets.chat import read_samples, samples_digest
from studio.errors import BadFile

CHAT = [{"role": "user", "content": "Capital of Mali?"}, {"role": "assistant", "content": "Bamako"}]


def write(folder, *lines):
    file = folder / "data.jsonl"
    file.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return file


def test_the_four_forms(tmp_path):
    read = read_samples(
        write(
            tmp_path,
            {"messages": [{"role": "system", "content": "Be short."}, *CHAT]},
            {"instruction": "Translate.", "input": "un chat", "output": "a cat", "id": 7},
            "",
            {"instruction": "Name a colour.", "input": "", "output": "red"},
            {"prompt": "1 + 1 =", "completion": " 2"},
            {"text": "Water is wet."},
        )
    )
    chat, translated, named, plain, text = read.items
    assert chat.turns == (("system", "Be short."), ("user", "Capital of Mali?"), ("assistant", "Bamako"))
    assert translated.turns == (("user", "Translate.\n\nun chat"), ("assistant", "a cat"))
    assert named.turns[0] == ("user", "Name a colour.")
    assert (plain.prompt, plain.completion, plain.answer, plain.chat) == ("1 + 1 =", " 2", " 2", False)
    assert (text.prompt, text.completion, text.asked) == ("", "Water is wet.", False)
    assert [sample.line for sample in read.items] == [1, 2, 4, 5, 6], "an empty line counts and is no sample"
    assert read.unused == {"id": 1}


def test_the_digest_is_that_of_the_content(tmp_path):
    def digest(*entries):
        return samples_digest(read_samples(write(tmp_path, *entries)).items)

    first = digest({"messages": CHAT}, {"text": "a", "id": 1})
    assert digest({"messages": CHAT, "source": "x"}, "", {"text": "a"}) == first
    assert digest({"text": "a"}, {"messages": CHAT}) != first
    assert digest({"messages": CHAT}, {"text": "b"}) != first


def turns(*pairs):
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', "line 2: not a JSON object"),
        ('["a"]', "line 2: a sample is a JSON object"),
        ({"txt": "a"}, "did you mean 'text' by 'txt'"),
        ({}, "line 2: a sample has .* found: nothing"),
        ({"text": 3}, "line 2: text must be a text, not 3"),
        ({"text": " "}, "line 2: text is empty"),
        ({"prompt": "a"}, "line 2: the sample has no answer: 'prompt' is there and 'completion' is not"),
        ({"instruction": "a"}, "no answer: 'instruction' is there and 'output' is not"),
        ({"instruction": "a", "output": ""}, "line 2: the sample has no answer: output is empty"),
        ({"text": "a", "prompt": "b", "completion": "c"}, "prompt and completion and also text; which one is meant"),
        (turns(("user", "a")), "line 2: the sample has no answer: its last turn is the user's"),
        (turns(("user", "a"), ("assistant", "")), "line 2, turn 2: the sample has no answer: content is empty"),
        (turns(("user", "a"), ("asistant", "b")), "line 2, turn 2: there is no role 'asistant'; did you mean 'assist"),
        (turns(("user", "a"), ("system", "b"), ("assistant", "c")), "turn 2: a system turn stands first or nowhere"),
        (turns(("assistant", "a"), ("user", "b"), ("assistant", "c")), "the conversation begins with an answer"),
        ({"messages": []}, "line 2: messages must be a list of turns"),
        ({"messages": [{"role": "user"}]}, "line 2, turn 1: a turn has a role and a content"),
        ({"messages": [{**CHAT[0], "name": "Bo"}, CHAT[1]]}, "turn 1: .*'name' would not be used"),
    ],
)  # fmt: skip
def test_a_bad_line_is_refused_by_its_number(tmp_path, line, message):
    with pytest.raises(BadFile, match=message):
        read_samples(write(tmp_path, {"text": "good"}, line, {"text": "good"}))


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(BadFile, match="there is no file"):
        read_samples(tmp_path / "none.jsonl")
    with pytest.raises(BadFile, match="holds neither sounds nor pictures"):
        read_samples(tmp_path)
    with pytest.raises(BadFile, match="has no sample"):
        read_samples(write(tmp_path, "", ""))
    with pytest.raises(BadFile, match="this is a JSON array"):
        read_samples(write(tmp_path, '[{"text": "a"},', '{"text": "b"}]'))
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "good"}\n{"text": "caf\xe9"}\n')
    with pytest.raises(BadFile, match="line 2: not UTF-8"):
        read_samples(tmp_path / "latin.jsonl")


def test_windows_line_ends_and_a_byte_order_mark_are_read(tmp_path):
    (tmp_path / "data.jsonl").write_bytes("\ufeff".encode() + b'{"text": "a"}\r\n{"text": "b\\nc"}\r\n')
    assert [sample.completion for sample in read_samples(tmp_path / "data.jsonl").items] == ["a", "b\nc"]
