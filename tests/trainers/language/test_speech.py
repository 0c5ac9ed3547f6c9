"""Speech recognisers through the one loop: loss, error rates, resampled sounds, resuming, what is refused."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner

from studio.adapters import LoRA
from studio.cli import main
from studio.errors import BadFile, DoesNotFit
from studio.families.language import open_language_base
from studio.families.language.hearing import beginning, features, heard_seconds
from studio.files import inspect
from studio.pipelines import TextPipeline
from studio.sounds import read_sound
from studio.trainers import Speech, train
from studio.trainers.language.mishearing import edits, error_rate
from studio.trainers.language.speech import SpeechLesson
from studio.trainers.loop.plan import Plan
from tiny import interrupted, write_wav

TONES = {"low": 300.0, "mid": 900.0, "high": 2700.0}


def write_clips(folder, lengths=(0.25, 0.3), rate=16_000):
    folder.mkdir()
    lines = []
    for word, hertz in TONES.items():
        for seconds in lengths:
            file = write_wav(folder / f"{word}-{seconds}.wav", hertz, rate=rate, seconds=seconds)
            lines.append(json.dumps({"file_name": file.name, "text": word}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture
def task(tiny_speech, tmp_path):
    return Speech(base=tiny_speech, data=write_clips(tmp_path / "clips"),
                  held_out=write_clips(tmp_path / "held-out", (0.28,)))  # fmt: skip


@pytest.fixture
def settings():
    return {"steps": 4, "batch_size": 2, "quiet": True, "checkpoint_every": 2, "adapter": LoRA(rank=2)}


def opened(task, tell=lambda line: None, **plan):
    return task.open(LoRA(rank=2), Plan(**{"batch_size": 2, **plan}), tell)


def by_hand(base, row):
    """Σ −log p of every token of a transcript and its end, in fp64, one row at a time."""
    tokenizer, model = base.tokenizer, base.model.double()
    start = tokenizer.convert_tokens_to_ids(["<|startoftranscript|>", "<|notimestamps|>"])
    text = tokenizer(row.sample.text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    with torch.no_grad():
        logits = model(
            input_features=row.heard[None].double(), decoder_input_ids=torch.tensor([start + text[:-1]])
        ).logits[0]  # fmt: skip
    base.model.float()
    return float(F.cross_entropy(logits[1:], torch.tensor(text), reduction="sum"))


def test_the_loss_is_the_sum_over_transcripts_by_their_mean_length(task):
    lesson = opened(task)
    rows = lesson.drawn([0, 1, 2])
    mean = sum(len(row.sample.text) + 1 for row in lesson.samples) / len(lesson.samples)
    wanted = sum(by_hand(lesson.base, row) for row in rows) / (3 * mean)
    assert float(lesson.loss([0, 1, 2]).total.detach()) == pytest.approx(wanted, rel=1e-5)


def test_what_is_measured_is_over_the_held_out_sounds(task):
    lesson = opened(task)
    found = lesson.measure()
    tokens = sum(len(row.sample.text) + 1 for row in lesson.held_out)
    wanted = sum(by_hand(lesson.base, row) for row in lesson.held_out) / tokens
    assert found["held_out_loss"] == pytest.approx(wanted, rel=1e-5)
    pipe = TextPipeline(lesson.base)
    said = [one.text for one in pipe.transcribe([row.sample.name for row in lesson.held_out], max_new_tokens=9)]
    right = [row.sample.text for row in lesson.held_out]
    assert found["character_error_rate"] == pytest.approx(error_rate(right, said))
    assert set(found) == {"held_out_loss", "word_error_rate", "character_error_rate"}


def test_accumulation_is_the_larger_batch(task, settings, tmp_path):
    whole = train(task, output=tmp_path / "whole", **{**settings, "steps": 3, "batch_size": 4})
    parts = train(task, output=tmp_path / "parts", **{**settings, "steps": 3, "accumulation": 2})
    assert whole.losses == pytest.approx(parts.losses, rel=1e-5)


def test_a_killed_run_goes_on_bit_for_bit(task, settings, tmp_path):
    settings["adapter"] = LoRA(rank=2, dropout=0.2)
    whole = train(task, output=tmp_path / "whole", **settings)
    with interrupted(SpeechLesson, 3):
        train(task, output=tmp_path / "run", **settings)
    resumed = train(task, output=tmp_path / "run", **settings)
    assert resumed.adapter.read_bytes() == whole.adapter.read_bytes()
    assert resumed.losses == whole.losses and resumed.measures == whole.measures


def test_it_learns_a_new_language_and_the_command_says_it(root, tmp_path):
    """The first takes of twelve German numbers, measured on the second ones, which are other voices."""
    clips = root / "studio" / "families" / "speech" / "train"
    texts = dict(json.loads(line).values() for line in (clips / "metadata.jsonl").read_text().splitlines())
    texts = {name: text for name, text in texts.items() if f"{name[:2]}-1.wav" in texts}
    first, second = ([{"audio": str(clips / name), "text": texts[name]} for name in sorted(texts) if take in name][:12]
                     for take in ("-0", "-1"))  # fmt: skip
    task = Speech(base="speech", data=first, held_out=second, name="numbers")
    run = train(task, output=tmp_path / "run", steps=40, batch_size=6, quiet=True)
    before, after = run.measures[0], run.measures[40]
    assert after["held_out_loss"] < before["held_out_loss"] / 4
    assert after["word_error_rate"] < 0.6 < 0.8 < before["word_error_rate"]
    sites = inspect(run.adapter).sites
    assert {site.split(".")[1] for site in sites} == {"encoder", "decoder"}
    assert all("attn" in site or site.endswith(("fc1", "fc2")) for site in sites)
    files = [entry["audio"] for entry in first]
    pipe = TextPipeline.open("speech")
    pipe.load(run.adapter)
    made = pipe.transcribe(files)
    assert sum(one.text == entry["text"] for one, entry in zip(made, first, strict=True)) >= 9
    mixed = pipe.transcribe([files[0]] * 2, blend=[{"numbers": 1.0}, {"numbers": 0.0}])
    assert mixed[0] == made[0] and mixed[1].text != made[0].text
    words = ["complete", "speech", *files[:2], "--adapter", str(run.adapter), "--json"]
    said = CliRunner().invoke(main, words, prog_name="studio")
    assert json.loads(said.stdout)["transcripts"] == [asdict(one) for one in made[:2]]


def test_sounds_of_another_rate_are_resampled_and_said(tiny_speech, tmp_path):
    told = []
    data = write_clips(tmp_path / "clips", (0.25,), rate=8000)
    lesson = opened(Speech(base=tiny_speech, data=data), told.append)
    assert "3 sounds resampled from 8000 to 16000 Hz" in told
    base = lesson.base
    same = features(base, read_sound(write_wav(tmp_path / "low.wav", 300.0, seconds=0.25)), "low")
    heard = next(row.heard for row in lesson.samples if row.sample.text == "low")
    loud = same > same.max() - 0.5
    assert float((heard - same)[loud].abs().max()) < 0.05


def test_other_marks_stand_before_a_transcript_of_a_base_with_languages(tiny_speech):
    base = open_language_base(tiny_speech)
    known = base.tokenizer.convert_tokens_to_ids
    assert beginning(base) == known(["<|startoftranscript|>", "<|notimestamps|>"])
    with pytest.raises(DoesNotFit) as caught:
        beginning(base, "de")
    assert str(caught.value) == "tiny-speech has no mark <|de|> for language='de'; leave the language out"
    base.tokenizer.add_special_tokens(
        {"extra_special_tokens": ["<|en|>", "<|de|>"]}, replace_extra_special_tokens=False
    )
    wanted = ["<|startoftranscript|>", "<|de|>", "<|transcribe|>", "<|notimestamps|>"]
    assert beginning(base, "de") == known(wanted)
    with pytest.raises(DoesNotFit) as caught:
        beginning(base)
    assert str(caught.value) == 'tiny-speech writes down several languages: say which, language="en"'


def test_a_base_of_english_alone_that_has_marks_of_languages_is_asked_without(tiny_speech):
    """As whisper-tiny.en is saved: ``<|en|>`` is in its vocabulary, and its generation config says it is unused."""
    base = open_language_base(tiny_speech)
    base.tokenizer.add_special_tokens({"extra_special_tokens": ["<|en|>"]}, replace_extra_special_tokens=False)
    base.model.generation_config.is_multilingual = False
    known = base.tokenizer.convert_tokens_to_ids
    assert beginning(base) == known(["<|startoftranscript|>", "<|notimestamps|>"])
    with pytest.raises(DoesNotFit) as caught:
        beginning(base, "en")
    assert str(caught.value) == "tiny-speech puts no language before a transcript: leave language='en' out"


def test_what_cannot_be_heard_is_refused(tiny_speech, tiny_language, tmp_path):
    assert heard_seconds(open_language_base(tiny_speech)) == 0.5
    long = write_wav(tmp_path / "long.wav", 300.0, seconds=0.7)
    with pytest.raises(DoesNotFit) as caught:
        opened(Speech(base=tiny_speech, data=[{"audio": str(long), "text": "low"}]))
    assert str(caught.value) == f"the sound {long} lasts 0.7 seconds, and tiny-speech hears 0.5: cut it"
    long.write_bytes(long.read_bytes()[:2000])
    with pytest.raises(BadFile) as caught:
        opened(Speech(base=tiny_speech, data=[{"audio": str(long), "text": "low"}]))
    assert str(caught.value) == f"the sound {long} is damaged: it ends after 1956 of 22400 bytes; copy it again"
    with pytest.raises(DoesNotFit, match="which transformers has no speech recogniser of"):
        clip = write_wav(tmp_path / "clip.wav", 300.0)
        opened(Speech(base=tiny_language, data=[{"audio": str(clip), "text": "low"}]))
    with pytest.raises(DoesNotFit, match="is a causal language model, which hears nothing"):
        TextPipeline.open(tiny_language).transcribe(clip)
    with pytest.raises(DoesNotFit, match=r"is a speech recogniser: ask it with sounds \(transcribe\)"):
        TextPipeline.open(tiny_speech).complete("Hi")


def test_edits_are_counted_as_by_hand():
    assert [edits("", "abc"), edits("abc", ""), edits("abc", "abc"), edits("abc", "acb"), edits("abcd", "bcde")] == [
        3, 0 + 3, 0, 2, 2
    ]  # fmt: skip
    assert error_rate([["a", "b", "c"], ["d"]], [["a", "c"], ["d", "d"]]) == 0.5
