"""Trains a base like the embedded ``figures``: a small LLaVA that says in English which figure a picture shows.

::

    OMP_NUM_THREADS=1 python examples/train_figures_base.py OUT

It takes a few minutes on one core. Every picture is drawn here; what a step draws follows from the seed and the step
alone, so the same command goes on where an interrupted one stopped, with the same bits. ``OUT/model`` opens with
``AutoModelForImageTextToText`` and ``AutoProcessor``; ``OUT/train`` and ``OUT/held-out`` are folders of pictures with
captions in Italian, of which the base has never read a word, beside them in ``metadata.jsonl``.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

import torch
from base_training import command_line, drawn_at, sizes_in, train_steps
from PIL import Image, ImageDraw
from torch import Tensor

from studio.atomic import atomic_path, atomic_write

SIDE, SCALE = 24, 4  # pixels; a figure is drawn larger, for smooth edges
COLOURS: Final = {
    "red": (215, 40, 40), "green": (40, 165, 60), "blue": (45, 75, 215), "yellow": (235, 205, 40),
    "black": (20, 20, 20), "white": (245, 245, 245),
}  # fmt: skip
FIGURES: Final = ("circle", "square", "triangle", "cross", "ring")
ITALIAN: Final = {
    "red": "rosso", "green": "verde", "blue": "blu", "yellow": "giallo", "black": "nero", "white": "bianco",
    "circle": "cerchio", "square": "quadrato", "triangle": "triangolo", "cross": "croce", "ring": "anello",
}  # fmt: skip
QUESTIONS: Final = ("", "", "What is it?", "What colour is it?")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of the network and of the training; the defaults are the embedded base's."""

    steps: int = 600
    rows: int = 32
    width: int = 64
    layers: int = 2
    heads: int = 4
    inner: int = 160
    rate: float = 3e-3
    matrix_rate: float = 2e-2
    warmup: int = 50


# -- pictures ----------------------------------------------------------------------------------------------------------


def drawn_picture(draw: random.Random, colour: str, figure: str) -> Image.Image:
    """Draws a figure of nearly that colour near the middle, of a size that chance chooses, on grey."""
    grey = draw.randint(95, 175)
    picture = Image.new("RGB", (SIDE * SCALE, SIDE * SCALE), (grey, grey, grey))
    size = draw.uniform(0.7, 0.9) * SIDE * SCALE
    left, top = ((SIDE * SCALE - size) / 2 + draw.uniform(-1, 1) * SCALE for _ in range(2))
    shade: Any = tuple(min(max(part + draw.randint(-12, 12), 0), 255) for part in COLOURS[colour])
    pen, box = ImageDraw.Draw(picture), (left, top, left + size, top + size)
    if figure == "circle":
        pen.ellipse(box, fill=shade)
    elif figure == "square":
        pen.rectangle(box, fill=shade)
    elif figure == "ring":
        pen.ellipse(box, outline=shade, width=round(size / 5))
    elif figure == "triangle":
        pen.polygon([(left, top + size), (left + size / 2, top), (left + size, top + size)], fill=shade)
    else:
        arm = size / 3
        pen.rectangle((left + arm, top, left + 2 * arm, top + size), fill=shade)
        pen.rectangle((left, top + arm, left + size, top + 2 * arm), fill=shade)
    return picture.resize((SIDE, SIDE), Image.Resampling.BOX)


def english(colour: str, figure: str, question: str = "") -> str:
    """What the base says of a picture, or answers to a question about it."""
    return {"": f"a {colour} {figure}", "What is it?": f"a {figure}", "What colour is it?": colour}[question]


def italian(colour: str, figure: str) -> str:
    """The same in Italian.

    >>> italian("red", "circle"), italian("yellow", "cross")
    ('un cerchio rosso', 'una croce gialla')
    """
    said, female = ITALIAN[colour], figure == "cross"
    said = f"{said[:-1]}a" if female and said.endswith("o") else said
    return f"un{'a' * female} {ITALIAN[figure]} {said}"


def new_pictures(*, held_out: bool) -> Iterator[tuple[str, Image.Image, str]]:
    """Two pictures of each figure in each colour, or a third one, with captions in Italian: name, picture, caption."""
    for colour, figure in product(COLOURS, FIGURES):
        for take in (2,) if held_out else (0, 1):
            picture = drawn_picture(drawn_at(6, colour, figure, take), colour, figure)
            yield f"{colour}-{figure}-{take}.png", picture, italian(colour, figure)


def write_pictures(folder: Path, pictures: Iterator[tuple[str, Image.Image, str]]) -> None:
    """Writes pictures below their names, and ``metadata.jsonl`` with their captions."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for file, picture, text in pictures:
        with atomic_path(folder / file) as temporary:
            picture.save(temporary, format="PNG", optimize=True)
        lines.append(json.dumps({"file_name": file, "text": text}, ensure_ascii=False))
    atomic_write(folder / "metadata.jsonl", "".join(f"{line}\n" for line in lines))


# -- processor and training --------------------------------------------------------------------------------------------


def new_processor() -> Any:
    """LLaVA's processor for pictures of 24 pixels, with a tokenizer that writes byte by byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlavaProcessor, PreTrainedTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: at for at, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>", extra_special_tokens=["<image>"],
        model_max_length=96,
    )  # fmt: skip
    seen = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return LlavaProcessor(
        image_processor=seen, tokenizer=fast, patch_size=6, vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )  # fmt: skip


def new_model(sizes: Sizes, processor: Any, seed: int) -> Any:
    """A small LLaVA: CLIP's vision tower and a Llama."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(seed)
    shared = dict(
        hidden_size=sizes.width, intermediate_size=sizes.inner, num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
    )  # fmt: skip
    tokenizer = processor.tokenizer
    text = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=96, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, **shared,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=SIDE, patch_size=6, projection_dim=sizes.width, **shared),
        text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<image>"), vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )  # fmt: skip
    return LlavaForConditionalGeneration(config)


def asked(question: str) -> str:
    """What stands before an answer."""
    return f"<image>\n{question}\n" if question else "<image>\n"


def batch_of(
    pictures: Sequence[Image.Image], questions: Sequence[str], answers: Sequence[str], processor: Any
) -> dict[str, Tensor]:  # fmt: skip
    """Pictures as the model takes them, with labels on the answers alone, each with its end."""
    texts = [f"{asked(q)}{a}<end>" for q, a in zip(questions, answers, strict=True)]
    made = dict(processor(text=texts, images=list(pictures), padding=True, padding_side="right", return_tensors="pt"))
    labels = torch.full_like(made["input_ids"], -100)
    for row, (ids, mask, answer) in enumerate(zip(made["input_ids"], made["attention_mask"], answers, strict=True)):
        end, said = int(mask.sum()), len(answer.encode()) + 1
        labels[row, end - said : end] = ids[end - said : end]
    return {**made, "labels": labels}


def right(model: Any, processor: Any, question: str, count: int = 60) -> float:
    """The share of new pictures of which the model says the right words."""
    draw, found = drawn_at(9, question), 0
    for _ in range(count):
        colour, figure = draw.choice(list(COLOURS)), draw.choice(FIGURES)
        given = processor(text=[asked(question)], images=[drawn_picture(draw, colour, figure)], return_tensors="pt")
        made = model.generate(**given, max_new_tokens=24, do_sample=False)[0, given["input_ids"].shape[1] :]
        found += processor.tokenizer.decode(made, skip_special_tokens=True) == english(colour, figure, question)
    return found / count


def train_base(
    out: Path, sizes: Sizes | None = None, *, seed: int = 0, save_every: int = 200, stop_at: int | None = None,
    asked_each: int = 60, say: Callable[[str], None] = print,
) -> Path | None:  # fmt: skip
    """Trains the model, and writes the base with its pictures.

    Args:
        out: where to; an interrupted training there goes on.
        sizes: of the network and of the training.
        seed: decides everything that is drawn.
        save_every: steps between saved states. stop_at: the step to stop before.
        asked_each: pictures that the trained base is asked each question about.
        say: takes lines for the user.

    Returns:
        The folder of the base; None when stopped before the end.
    """
    sizes = sizes or Sizes()
    write_pictures(out / "train", new_pictures(held_out=False))
    write_pictures(out / "held-out", new_pictures(held_out=True))
    processor = new_processor()
    model = new_model(sizes, processor, seed)
    say(f"{sum(p.numel() for p in model.parameters()):,} weights")

    def loss_at(step: int) -> Tensor:
        draw = drawn_at(seed, step)
        drawn = [(draw.choice(list(COLOURS)), draw.choice(FIGURES), draw.choice(QUESTIONS)) for _ in range(sizes.rows)]
        pictures = [drawn_picture(draw, colour, figure) for colour, figure, _ in drawn]
        loss: Tensor = model(
            **batch_of(pictures, [question for *_, question in drawn], [english(*one) for one in drawn], processor)
        ).loss
        return loss

    if not train_steps(model, sizes, out / "training.pt", loss_at, save_every=save_every, stop_at=stop_at, say=say):
        return None
    model.eval()
    for question in dict.fromkeys(QUESTIONS):
        say(f"{question or 'caption'}: {right(model, processor, question, asked_each):.3f} right")
    model.half().save_pretrained(out / "model")
    processor.save_pretrained(out / "model")
    return out / "model"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = command_line(__doc__, Sizes())
    given = parser.parse_args(arguments)
    train_base(given.out, sizes_in(given, Sizes), seed=given.seed)


if __name__ == "__main__":
    main()
