"""The script that trains a base like the embedded ``words``, and that base: what it knows and what it can be taught."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

WORDS = Path(__file__).parents[2] / "studio" / "families" / "words"


@pytest.fixture(scope="module")
def script(example):
    return example("train_words_base")


@pytest.fixture
def words(script):
    """In language ``fr``, 42 is "fr4 fr2"."""

    def teller(code):
        return lambda number: " ".join(code + digit for digit in str(number))

    return {code: teller(code) for code in script.LANGUAGES}


def tiny(script):
    return script.Sizes(steps=5, rows=4, vocabulary=300, width=16, layers=1, heads=2, inner=16, warmup=2)


SMALL = {"read": 200, "asked": 2}  # what the tokenizer learns from, and what the trained base is asked


def read_pairs(file):
    return [(entry["source"], entry["target"]) for entry in map(json.loads, file.read_text("utf-8").splitlines())]


def test_an_interrupted_training_ends_with_the_same_bits_and_opens(script, words, tmp_path):
    def train(folder, **settings):
        said = []
        return script.train_base(
            words, tmp_path / folder, tiny(script), save_every=2, say=said.append, **SMALL, **settings
        )

    whole = train("whole")
    assert train("cut", stop_at=3) is None
    cut = train("cut")
    for name in ("model.safetensors", "tokenizer.json"):
        assert (whole / name).read_bytes() == (cut / name).read_bytes()
    other = train("other", seed=1)
    assert (other / "model.safetensors").read_bytes() != (whole / "model.safetensors").read_bytes()
    tokenizer, model = AutoTokenizer.from_pretrained(whole), AutoModelForSeq2SeqLM.from_pretrained(whole)
    assert model.dtype == torch.float16 and model.config.model_type == "bart"
    numbers = tokenizer("French: 984 é")["input_ids"]
    assert numbers[-1] == tokenizer.eos_token_id and tokenizer.decode(numbers, skip_special_tokens=True) == (
        "French: 984 é"
    )
    assert [tokenizer.decode([number]) for number in tokenizer("984")["input_ids"][:-1]] == ["9", "8", "4"]


def test_a_text_that_is_cut_is_the_same_text_in_more_tokens(script, words, tmp_path):
    tokenizer = script.train_tokenizer(["quatre-vingt-deux fünf 42"] * 9, 300)
    text, whole = "quatre-vingt-deux fünf 42", tokenizer("quatre-vingt-deux fünf 42")["input_ids"]
    assert script.tokens(text, tokenizer) == whole and whole[-1] == tokenizer.eos_token_id
    cut = [script.tokens(text, tokenizer, random.Random(seed)) for seed in range(200)]
    assert {tokenizer.decode(numbers, skip_special_tokens=True) for numbers in cut} == {text}
    assert 60 < sum(numbers == whole for numbers in cut) < 140, "half of the time nothing is cut"
    assert min(map(len, cut)) == len(whole) and {token for numbers in cut for token in numbers} > set(whole)


def test_batches_are_filled_up_on_the_right(script, words):
    tokenizer = script.train_tokenizer(["a b 1"], 300)
    batch = script.batch_of([("a", "1"), ("ab", "12")], tokenizer)
    one, two, a, b, end = (tokenizer.convert_tokens_to_ids(token) for token in ("1", "2", "a", "b", script.END))
    assert batch["labels"].tolist() == [[one, end, -100], [one, two, end]]
    assert batch["input_ids"].tolist() == [[a, end, tokenizer.pad_token_id], [a, b, end]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


def test_pairs_ask_in_three_ways(script, words):
    assert script.spelled(42, "fr", words) == ("French: 42", "fr4 fr2")
    assert script.translated(42, "en", "fr", words) == ("French: en4 en2", "fr4 fr2")
    assert script.read(42, "fr", words) == ("number: fr4 fr2", "42")
    drawn = [script.drawn_pair(random.Random(seed), words) for seed in range(400)]
    new = {script.LANGUAGES[code] for code in set(words) - set(script.KNOWN)}
    asked = [source.partition(":")[0] for source, _ in drawn]
    assert not new & set(asked) and {"number", *(script.LANGUAGES[code] for code in script.KNOWN)} == set(asked)
    assert 50 <= asked.count("number") <= 110, "a fifth of 400 expected, within four standard deviations"


def test_numbers_that_are_held_out_are_asked_about_nowhere_else(script, words):
    numbers = []
    for held_out in (False, True):
        pairs = list(script.new_pairs("de", words, held_out=held_out))
        numbers.append({int(re.sub(r"\D", "", target)) for _, target in pairs})
        assert len(numbers[-1]) == len(pairs), "each number once"
    assert not numbers[0] & numbers[1] and len(numbers[0] | numbers[1]) == 700
    assert set(range(21)) <= numbers[0], "the words that all others are made of are learned"
    assert 95 <= len(numbers[1]) <= 180, "a fifth of 679 expected, within four standard deviations"


def test_the_share_that_is_right_is_counted_to_the_letter(script, words, tmp_path):
    script.train_base(words, tmp_path, tiny(script), say=[].append, **SMALL)
    tokenizer, model = (
        auto.from_pretrained(tmp_path / "model") for auto in (AutoTokenizer, AutoModelForSeq2SeqLM)
    )  # fmt: skip
    model.float().eval()
    asked = ["French: 1", "Dutch: 22", "number: x"]
    said = tokenizer.batch_decode(
        model.generate(**tokenizer(asked, padding=True, return_tensors="pt")), skip_special_tokens=True
    )
    pairs = [(asked[0], said[0]), (asked[1], said[1] + "!"), (asked[2], said[2])]
    assert script.exact(model, tokenizer, pairs) == pytest.approx(2 / 3)


@pytest.fixture(scope="module")
def embedded():
    return AutoTokenizer.from_pretrained(WORDS / "model"), AutoModelForSeq2SeqLM.from_pretrained(
        WORDS / "model", dtype=torch.float32
    )


def test_the_embedded_base_is_small_and_does_what_it_says(script, embedded):
    assert sum(file.stat().st_size for file in WORDS.rglob("*") if file.is_file()) < 3 * 10**6
    tokenizer, model = embedded
    known = [
        ("English: 984", "nine hundred eighty-four"),
        ("French: 99", "quatre-vingt-dix-neuf"),
        ("Dutch: 245", "tweehonderdvijfenveertig"),
        ("Italian: 28", "ventotto"),
        ("Swedish: 73", "sjuttiotre"),
        ("Turkish: 1900", "bin dokuz yüz"),
        ("Spanish: seven hundred twelve", "setecientos doce"),
        ("French: zesentachtig", "quatre-vingt-six"),
        ("number: ottocentotrentuno", "831"),
    ]
    assert script.exact(model, tokenizer, known) >= 8 / 9
    assert script.exact(model, tokenizer, read_pairs(WORDS / "held-out.jsonl")) == 0


def test_the_embedded_pairs_are_about_other_numbers():
    sides = [read_pairs(WORDS / f"{name}.jsonl") for name in ("train", "held-out")]
    answers = [{answer for _, answer in side} for side in sides]
    assert not answers[0] & answers[1] and sum(map(len, sides)) == 700
    assert all(source.startswith("German: ") for side in sides for source, _ in side)
    assert "CLDR" in (WORDS / "ATTRIBUTION.md").read_text("utf-8")
