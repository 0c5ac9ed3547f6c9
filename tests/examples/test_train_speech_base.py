"""The script that trains a base like the embedded ``speech``, and that base: what it hears and what is new to it."""

from __future__ import annotations

import json
import random
import shutil
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

SPEECH = Path(__file__).parents[2] / "studio" / "families" / "speech"


@pytest.fixture(scope="module")
def script(example):
    return example("train_speech_base")


@pytest.fixture
def words(script):
    """In language ``fr``, 42 is "fr4 fr2"."""

    def teller(code):
        return lambda number: " ".join(code + digit for digit in str(number))

    return {code: teller(code) for code in script.LANGUAGES}


def hum(said):
    """A voice that hums: each letter is a tone of a fortieth of a second."""
    seconds = np.arange(400) / 16_000
    tones = [np.sin(2 * np.pi * (100 + 30 * (ord(letter) % 64)) * seconds) for letter in said.text]
    return (np.concatenate(tones) * 20_000).astype("<i2")


def tiny(script):
    return script.Sizes(steps=5, rows=3, clips=12, width=16, layers=1, heads=2, inner=16, warmup=2)


def test_an_interrupted_training_ends_with_the_same_bits_and_opens(script, words, tmp_path):
    def train(folder, **settings):
        said = []
        return script.train_base(
            words, tmp_path / folder, tiny(script), save_every=2, asked=2, voice=hum, say=said.append, **settings
        )

    whole = train("whole")
    assert train("cut", stop_at=3) is None
    cut = train("cut")
    assert (whole / "model.safetensors").read_bytes() == (cut / "model.safetensors").read_bytes()
    other = train("other", seed=1)
    assert (other / "model.safetensors").read_bytes() != (whole / "model.safetensors").read_bytes()
    processor, model = AutoProcessor.from_pretrained(whole), AutoModelForSpeechSeq2Seq.from_pretrained(whole)
    assert model.dtype == torch.float16 and model.config.model_type == "whisper"
    heard = processor(np.zeros(8000, dtype=np.float32), sampling_rate=16_000, return_tensors="pt")
    assert heard["input_features"].shape == (1, 80, 200), "two seconds, a hundred columns each"
    assert model.float().generate(heard["input_features"]).shape[1] <= 64
    with pytest.raises(ValueError, match="sampling rate"):
        processor(np.zeros(8000, dtype=np.float32), sampling_rate=8000)


def test_texts_are_marked_as_whisper_marks_them(script):
    tokenizer = script.new_processor().tokenizer
    numbers = tokenizer("fünf é")["input_ids"]
    marks = [tokenizer.convert_tokens_to_ids(mark) for mark in script.MARKS]
    assert len(set(marks)) == len(marks) and min(marks) == 256
    assert tokenizer.decode(numbers) == "<|startoftranscript|><|notimestamps|>fünf é<|endoftext|>"
    assert tokenizer.decode(numbers, skip_special_tokens=True) == "fünf é"
    assert len(numbers) == 3 + len("fünf é".encode()), "a token for each byte"


def test_labels_begin_after_the_mark_that_the_model_begins_with(script):
    processor = script.new_processor()
    silence = np.zeros(100, dtype=np.float32)
    labels = script.batch_of([silence, silence], ["ab", "c"], processor)["labels"]
    quiet, end = (processor.tokenizer.convert_tokens_to_ids(mark) for mark in ("<|notimestamps|>", "<|endoftext|>"))
    letters = [processor.tokenizer.convert_tokens_to_ids(letter) for letter in "abc"]
    assert labels.tolist() == [[quiet, *letters[:2], end], [quiet, letters[2], end, -100]]


def test_recordings_that_are_held_out_are_of_other_numbers_by_other_voices(script, words, tmp_path):
    said = [[one for _, one in script.new_clips("de", words, held_out=held_out)] for held_out in (False, True)]
    assert [len(side) for side in said] == [101, 40]
    texts, voices = ([{getattr(one, name) for one in side} for side in said] for name in ("text", "voice"))
    assert not texts[0] & texts[1] and not voices[0] & voices[1]
    alone = {words["de"](number) for number in range(100) if number < 21 or number % 10 == 0}
    assert alone <= texts[0], "the words that all others are made of are learned"
    script.write_recordings("de", words, tmp_path, hum)
    read = script.read_recordings(tmp_path / "held-out")
    for (samples, text), one in zip(read, said[1], strict=True):
        assert text == one.text and np.array_equal(samples, hum(one)), "what is written comes back"
    with wave.open(str(next((tmp_path / "train").glob("*.wav")))) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 16_000)


def test_noise_is_as_far_below_as_is_said(script):
    silence = np.zeros(16_000, dtype=np.int16)
    levels = [20 * np.log10(script.worn(silence, random.Random(seed)).std() / 0.1) for seed in range(200)]
    assert -72.1 < min(levels) < -55 and -40 < max(levels) < -24.9, "25 to 60 dB, and up to 12 dB softer"


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="needs espeak-ng")
def test_espeak_says_a_text_at_sixteen_thousand_samples_a_second(script):
    slow, fast = (script.speak(script.Said("forty-two", "en-us+f1", speed, 50)) for speed in (120, 240))
    assert np.array_equal(slow, script.speak(script.Said("forty-two", "en-us+f1", 120, 50)))
    assert len(slow) > 1.4 * len(fast) and 4_000 < len(fast) < 16_000
    assert np.abs(slow).max() == 20_000


def test_a_tone_keeps_its_pitch_at_another_rate(script):
    """A second of 440 Hz and 9,000 Hz, which 16,000 samples a second cannot hold."""
    before, after = (np.arange(rate) / rate * 2 * np.pi for rate in (22_050, 16_000))
    heard = script.resampled(np.sin(440 * before) + np.sin(9_000 * before), 22_050)
    assert np.allclose(heard, np.sin(440 * after), atol=1e-9)


def test_the_embedded_base_is_small_and_hears_what_it_says(script):
    assert sum(file.stat().st_size for file in SPEECH.rglob("*") if file.is_file()) < 7 * 10**6
    processor = AutoProcessor.from_pretrained(SPEECH / "model")
    model = AutoModelForSpeechSeq2Seq.from_pretrained(SPEECH / "model", dtype=torch.float32)
    assert script.exact(model, processor, script.read_recordings(SPEECH / "held-out")) == 0
    known = script.read_recordings(SPEECH / "known")
    assert script.exact(model, processor, known) >= 0.8


def test_the_embedded_recordings_say_where_they_are_from():
    for name, count in (("train", 101), ("held-out", 40)):
        entries = [json.loads(line) for line in (SPEECH / name / "metadata.jsonl").read_text("utf-8").splitlines()]
        assert {entry["file_name"] for entry in entries} == {file.name for file in (SPEECH / name).glob("*.wav")}
        assert len(entries) == count and all(entry["text"] for entry in entries)
    said = (SPEECH / "ATTRIBUTION.md").read_text("utf-8")
    assert "eSpeak NG" in said and "CLDR" in said
