"""Sources of records: each form gives the same fields, and each fault is refused with its place."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import wave

import pytest

from studio.datasets.chat import read_samples as read_chats
from studio.datasets.pairs import pair_of
from studio.datasets.records import READERS, Record, read_records
from studio.datasets.samples import read_samples
from studio.errors import BadFile

ROWS = [
    {"text": "a, b", "label": "good"},
    {"text": 'says "so"', "label": "bad"},
    {"text": "line\nbreak", "label": "grün"},
]


def as_lines(file):
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def as_list(file):
    file.write_text(json.dumps(ROWS))


def as_table(file):
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["text", "label"], delimiter="\t" if file.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(ROWS)


def as_parquet(file):
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), file)


def as_text(file):
    file.write_text("".join(f"{row['text']}\n\n\n" for row in ROWS))


WRITERS = {
    ".jsonl": as_lines, ".ndjson": as_lines, ".json": as_list, ".csv": as_table, ".tsv": as_table,
    ".parquet": as_parquet, ".txt": as_text, ".md": as_text,
}  # fmt: skip


@pytest.mark.parametrize("suffix", READERS)
def test_every_form_of_a_file_gives_the_same_records(suffix, tmp_path):
    file = tmp_path / f"data{suffix}"
    WRITERS[suffix](file)
    fields = [dict(record.fields) for record in read_records(file).items]
    assert fields == ([{"text": row["text"]} for row in ROWS] if WRITERS[suffix] is as_text else ROWS)


def test_records_know_their_lines(tmp_path):
    file = tmp_path / "x.csv"
    as_table(file)
    assert [record.line for record in read_records(file).items] == [2, 3, 5], "the line on which a row ends"
    file = tmp_path / "x.txt"
    file.write_text("\n\nfirst\ngoes on\n   \nsecond")
    found = read_records(file).items
    assert [(record.line, record.fields["text"]) for record in found] == [(3, "first\ngoes on"), (6, "second")]


def test_a_list_of_dicts_is_a_source():
    assert [record.fields for record in read_records(ROWS).items] == ROWS


def test_data_sets_are_sources():
    found = importlib.util.find_spec("datasets")
    if found is None or found.origin is None:  # our folder of that name, where Hugging Face's package is not installed
        pytest.skip("Hugging Face's datasets is not installed: the extra llm has it")
    import datasets as data

    made = data.Dataset.from_list(ROWS)
    assert [dict(record.fields) for record in read_records(made).items] == ROWS
    with pytest.raises(BadFile, match=r"the data has the splits train: give one of them, data\['train'\]"):
        read_records(data.DatasetDict({"train": made}))


def sound(file):
    with wave.open(str(file), "wb") as stream:
        stream.setparams((1, 2, 8000, 0, "NONE", ""))
        stream.writeframes(b"\0\0" * 80)


def test_a_folder_of_sounds_gives_each_its_text(tmp_path):
    for name in ("a", "b", "c"):
        sound(tmp_path / f"{name}.wav")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "b.wav", "text": "two"}) + "\n")
    read = read_records(tmp_path)
    assert [record.fields for record in read.items] == [
        {"audio": str(tmp_path / "a.wav"), "text": "one"}, {"audio": str(tmp_path / "b.wav"), "text": "two"},
    ]  # fmt: skip
    assert any("1 files have no text and are not used: c.wav" in note for note in read.notes)


def test_a_folder_of_code_gives_its_files(tmp_path):
    (tmp_path / "a.py").write_text("a = 1\n")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "b.rs").write_text("fn main() {}\n")
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "bad.py").write_bytes(b"\xff\xfe\xfa")
    read = read_records(tmp_path)
    assert [record.fields["code"] for record in read.items] == ["a = 1\n", "fn main() {}\n"]
    assert read.notes == ("bad.py is no UTF-8 text that can be read",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", "", "x.csv has no header"),
        ("x.csv", "text,text\na,b\n", "two columns are called 'text'"),
        ("x.csv", "text,label\na,b\nc\n", "line 3: the row has 1 cells and the header names 2"),
        ("x.csv", 'text\n"open\n', "line 2: not a table"),
        ("x.csv", "text\n", "has no sample"),
        ("x.json", "{", "x.json is not JSON"),
        ("x.json", '{"a": 1}', "and a list of samples is asked for"),
        ("x.json", '["a"]', "entry 1: a sample is a JSON object"),
        ("x.jsonl", "[]\n", "line 1: a sample is a JSON object"),
        ("x.txt", " \n\n", "has no sample"),
        ("x.parquet", "PAR1 and then nothing of the kind", "cannot be read as Parquet"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(name, content, message, tmp_path):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_text(content)
    with pytest.raises(BadFile, match=message):
        read_records(tmp_path / name)


HOSTILE = {
    "latin.csv": (b"text,label\n\xe9,x\n", "latin.csv, line 2: not UTF-8 text; save the file as UTF-8"),
    "half.csv": ("text\né\n".encode("utf-16") + b"a", "not UTF-8 text; save the file as UTF-8"),
    "deep.json": (b"[" * 5000 + b"]" * 5000, "deep.json is not JSON: more than 100 levels of JSON in one another"),
    "deep.jsonl": (b'{"text": ' + b"[" * 100_000, "line 1: not a JSON object: more than 100 levels of JSON"),
    "digits.json": (b'[{"label": ' + b"9" * 5000 + b"}]", "digits.json is not JSON: Exceeds the limit"),
    "twice.jsonl": (b'{"text": "a", "text": "b"}', "line 1: not a JSON object: 'text' stands there twice"),
    "nul.jsonl": (b'{"text": "a\0b"}', "line 1: not a JSON object: Invalid control character"),
    "half.jsonl": (b'{"text": "\\ud800"}', "holds half a surrogate pair, which is no character"),
    "cells.csv": (b"text,label\n\n" + b"a" * 2_000_000 + b"\n", "line 3: the row has 1 cells and the header names 2"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_one_sentence(name, tmp_path):
    content, message = HOSTILE[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadFile, match=re.escape(message)) as caught:
        read_records(tmp_path / name)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def test_cells_are_as_large_as_a_file_may_be(tmp_path):
    (tmp_path / "x.csv").write_text("text\n" + "a" * 2_000_000 + "\n")
    assert len(read_records(tmp_path / "x.csv").items[0].fields["text"]) == 2_000_000


def test_damaged_cells_of_parquet_are_refused(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    texts = pyarrow.array([b"fine", b"\xff\xfe"], pyarrow.binary()).cast(pyarrow.string(), safe=False)
    parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "x.parquet")
    with pytest.raises(BadFile, match=r"x\.parquet cannot be read as Parquet: .*; copy it again"):
        read_records(tmp_path / "x.parquet")
    whole = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadFile, match=r"x\.parquet cannot be read as Parquet: "):
        read_records(tmp_path / "x.parquet")


def test_cells_without_a_value_are_left_out_of_objects():
    rows = [{"text": "a", "prompt": None, "completion": None}, {"text": None, "prompt": "b", "completion": "c"}]
    assert [record.fields for record in read_records(rows).items] == [
        {"text": "a"}, {"prompt": "b", "completion": "c"},
    ]  # fmt: skip
    turns = [{"role": "user", "content": "Hi", "name": None}, {"role": "assistant", "content": "Yes?", "name": None}]
    chats = read_chats([*rows, {"messages": turns}])
    assert [sample.answer for sample in chats.items] == ["a", "c", "Yes?"] and chats.unused == {}
    (pair,) = read_samples([{"translation": {"en": "cat", "fr": None, "de": "Katze"}}], pair_of).items
    assert (pair.source, pair.target) == ("cat", "Katze")


def test_what_a_data_set_cannot_decode_is_told_with_its_place():
    def rows():
        yield {"text": "a"}
        raise ImportError("To support decoding audio data, please install 'torchcodec'.")

    with pytest.raises(BadFile, match=r"^data, entry 2 cannot be read: To support decoding .*'torchcodec'\.$"):
        read_records(rows())


def test_metadata_gives_no_text_to_files_outside_its_folder(tmp_path):
    sound(tmp_path / "outside.wav")
    inner = tmp_path / "inner"
    inner.mkdir()
    sound(inner / "a.wav")
    entries = [("../outside.wav", "x"), (str(tmp_path / "outside.wav"), "y"), ("a.wav", "one")]
    (inner / "metadata.jsonl").write_text("".join(json.dumps({"file_name": n, "text": t}) + "\n" for n, t in entries))
    read = read_records(inner)
    assert [record.fields for record in read.items] == [{"audio": str(inner / "a.wav"), "text": "one"}]
    assert [note for note in read.notes if "there is no '../outside.wav'" in note]


def test_links_that_lead_round_are_followed_once(tmp_path):
    sound(tmp_path / "a.wav")
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "round").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    assert [record.fields["text"] for record in read_records(tmp_path).items] == ["one"]


def test_folders_without_texts_or_of_both_sorts_are_refused(tmp_path):
    with pytest.raises(BadFile, match="holds neither sounds nor pictures"):
        read_records(tmp_path)
    sound(tmp_path / "a.wav")
    with pytest.raises(BadFile, match=r"none of its 1 audio files has a text: put a\.txt beside a\.wav"):
        read_records(tmp_path)
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(BadFile, match="1 audio files and 1 image files"):
        read_records(tmp_path)
    with pytest.raises(BadFile, match="not a int"):
        read_records(5)
    with pytest.raises(BadFile, match="the data has no sample"):
        read_records([])
    with pytest.raises(BadFile, match="the data has no sample"):
        read_records({})
    with pytest.raises(BadFile, match="cannot be read: File name too long"):
        read_records("a" * 5000)


def test_sharegpt_is_a_conversation():
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Yes?"},
    ]
    (sample,) = read_chats([{"conversations": turns}]).items
    assert sample.turns == (("system", "Be brief."), ("user", "Hi"), ("assistant", "Yes?"))
    with pytest.raises(BadFile, match="there is no role 'observer'"):
        read_chats([{"conversations": [{"from": "observer", "value": "x"}]}])
    with pytest.raises(BadFile, match="conversations must be a list of turns"):
        read_chats([{"conversations": "Hi"}])


@pytest.mark.parametrize(
    ("fields", "pair"),
    [
        ({"source": "a", "target": "b"}, ("a", "b")),
        ({"instruction": "Add.", "input": "1 2", "output": "3"}, ("Add.\n\n1 2", "3")),
        ({"instruction": "Add.", "input": "", "output": "3"}, ("Add.", "3")),
        ({"document": "long", "summary": "l"}, ("long", "l")),
        ({"article": "long", "highlights": "l"}, ("long", "l")),
        ({"translation": {"en": "cat", "de": "Katze"}}, ("cat", "Katze")),
    ],
)
def test_the_forms_of_pairs(fields, pair):
    (sample,) = read_samples([fields], pair_of).items
    assert (sample.source, sample.target) == pair


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"source": "a"}, "did you mean|a sample has source and target"),
        ({"source": "a", "text": "b", "target": "c"}, "it has 'source' and 'text'; which one is meant"),
        ({"source": "a", "target": " "}, "target is empty"),
        ({"instruction": "", "output": "a"}, "there is nothing to read"),
        ({"translation": {"en": "cat"}}, "a text in each of two languages"),
        ({"sorce": "a", "target": "b"}, "did you mean 'source' by 'sorce'"),
    ],
)
def test_what_is_no_pair_is_refused(fields, message):
    with pytest.raises(BadFile, match=message):
        pair_of(Record(1, "here", fields))
