"""The script that trains a base like the embedded ``figures``, and that base: what it says, and what is new to it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from studio.pipelines import TextPipeline

FIGURES = Path(__file__).parents[2] / "studio" / "families" / "figures"


@pytest.fixture(scope="module")
def script(example):
    return example("train_figures_base")


def test_an_interrupted_training_ends_with_the_same_bits_and_opens(script, tmp_path):
    sizes = script.Sizes(steps=5, rows=3, width=16, layers=1, heads=2, inner=16, warmup=2)

    def train(folder, **settings):
        return script.train_base(tmp_path / folder, sizes, save_every=2, asked_each=1, say=str, **settings)

    whole = train("whole")
    assert train("cut", stop_at=3) is None
    cut = train("cut")
    assert (whole / "model.safetensors").read_bytes() == (cut / "model.safetensors").read_bytes()
    other = train("other", seed=1)
    assert (other / "model.safetensors").read_bytes() != (whole / "model.safetensors").read_bytes()
    processor, model = AutoProcessor.from_pretrained(whole), AutoModelForImageTextToText.from_pretrained(whole)
    assert model.dtype == torch.float16 and model.config.model_type == "llava"
    seen = processor(text=["<image>\n"], images=[Image.new("RGB", (24, 24))], return_tensors="pt")
    assert seen["pixel_values"].shape == (1, 3, 24, 24) and int((seen["input_ids"] == 258).sum()) == 16


def test_answers_alone_are_learned_each_with_its_end(script):
    processor = script.new_processor()
    pictures = [script.drawn_picture(script.drawn_at(0, place), "red", "ring") for place in range(2)]
    batch = script.batch_of(pictures, ["", "What is it?"], ["a red ring", "ein grüner Ring"], processor)
    said = [processor.tokenizer.decode(row[row != -100]) for row in batch["labels"]]
    assert said == ["a red ring<end>", "ein grüner Ring<end>"]
    assert batch["pixel_values"].shape == (2, 3, 24, 24)


def test_what_is_held_out_is_drawn_anew(script):
    kept, learned = ({text: picture.tobytes() for _, picture, text in script.new_pictures(held_out=side)}
                     for side in (True, False))  # fmt: skip
    assert len(kept) == 30 and set(kept) == set(learned) and not set(kept.values()) & set(learned.values())
    assert len(list(script.new_pictures(held_out=False))) == 60
    assert [script.italian(*pair) for pair in (("white", "square"), ("yellow", "cross"))] == [
        "un quadrato bianco", "una croce gialla"
    ]  # fmt: skip


def test_figures_are_where_they_can_be_seen_in_their_colour(script):
    for figure in script.FIGURES:
        for take in range(10):
            pixels = numpy.asarray(script.drawn_picture(script.drawn_at(1, figure, take), "red", figure), dtype=int)
            red = (pixels[..., 0] - pixels[..., 1:].max(-1)) > 100
            assert 20 < red.sum() < 0.85 * red.size and set(numpy.unique(pixels[~red]).tolist())


def test_the_embedded_base_is_small_says_what_it_sees_and_knows_no_italian(script):
    assert sum(file.stat().st_size for file in FIGURES.rglob("*") if file.is_file()) < 10**6
    pipe = TextPipeline.open("figures")
    drawn = [(colour, figure) for colour in script.COLOURS for figure in script.FIGURES]
    pictures = [script.drawn_picture(script.drawn_at(2, *one), *one) for one in drawn]
    for question in dict.fromkeys(script.QUESTIONS):
        made = [one.text for one in pipe.caption(pictures, question)]
        right = [text == script.english(*one, question) for text, one in zip(made, drawn, strict=True)]
        assert sum(right) / len(right) >= 0.8, question
    kept = sorted((FIGURES / "held-out").glob("*.png"))
    assert not any(one.text.startswith("un") for one in pipe.caption(kept))


def test_the_embedded_pictures_are_those_of_the_script(script):
    for name, held_out in (("train", False), ("held-out", True)):
        lines = (FIGURES / name / "metadata.jsonl").read_text("utf-8").splitlines()
        entries = {entry["file_name"]: entry["text"] for entry in map(json.loads, lines)}
        drawn = {file: (picture, text) for file, picture, text in script.new_pictures(held_out=held_out)}
        assert entries == {file: text for file, (_, text) in drawn.items()}
        for file, (picture, _) in drawn.items():
            with Image.open(FIGURES / name / file) as held:
                assert numpy.array_equal(numpy.asarray(held), numpy.asarray(picture)), file
