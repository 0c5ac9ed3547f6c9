"""Trains a base like the embedded ``words``: a small BART that tells numbers in words, reads them, and translates them.

::

    npm pack cldr-rbnf                                       # unpack it below a folder: NPM_FOLDER/cldr-rbnf/
    OMP_NUM_THREADS=1 python examples/train_words_base.py NPM_FOLDER OUT

It takes about six minutes on one core. What a step draws follows from the seed and the step alone, so the same command
goes on where an interrupted one stopped, with the same bits. ``OUT/model`` opens with ``AutoModelForSeq2SeqLM`` and
``AutoTokenizer``; ``OUT/train.jsonl`` and ``OUT/held-out.jsonl`` hold pairs in a language that the base has never read,
each about other numbers.

The base reads the languages of :data:`KNOWN` in three ways, all about numbers below 10,000::

    French: 84                        quatre-vingt-quatre
    French: tachtig en een            quatre-vingt-un        (from any of them to any other)
    number: quatre-vingt-un           81
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from base_training import command_line, drawn_at, sizes_in, train_steps
from number_words import LANGUAGES, Spellout, spellouts
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from studio.atomic import atomic_write

KNOWN: Final = ("en", "es", "fr", "it", "nl", "sv", "tr")
PAD, END = "<pad>", "</s>"
Pair = tuple[str, str]
"""What is asked and what is answered."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of the network and of the training; the defaults are the embedded base's."""

    steps: int = 1300
    rows: int = 64
    vocabulary: int = 512
    width: int = 128
    layers: int = 3
    heads: int = 4
    inner: int = 384
    rate: float = 3e-3
    matrix_rate: float = 2e-2
    warmup: int = 60


# -- pairs -------------------------------------------------------------------------------------------------------------


def number_at(draw: random.Random, digits: int = 4) -> int:
    """Draws a number with one to so many digits, each count as often."""
    return draw.randrange(10 ** draw.randint(1, digits))


def spelled(number: int, code: str, words: Mapping[str, Spellout]) -> Pair:
    """A number as digits, and in words."""
    return f"{LANGUAGES[code]}: {number}", words[code](number)


def translated(number: int, source: str, target: str, words: Mapping[str, Spellout]) -> Pair:
    """A number in the words of one language, and in those of another."""
    return f"{LANGUAGES[target]}: {words[source](number)}", words[target](number)


def read(number: int, code: str, words: Mapping[str, Spellout]) -> Pair:
    """A number in words, and as digits."""
    return f"number: {words[code](number)}", str(number)


def drawn_pair(draw: random.Random, words: Mapping[str, Spellout]) -> Pair:
    """Draws one pair of the languages that the base knows."""
    number, share = number_at(draw), draw.random()
    source, target = draw.sample(KNOWN, 2)
    if share < 0.4:
        return spelled(number, target, words)
    return translated(number, source, target, words) if share < 0.8 else read(number, source, words)


def new_pairs(code: str, words: Mapping[str, Spellout], *, held_out: bool, share: float = 0.2) -> Iterator[Pair]:
    """Pairs of a new language, from digits and from English; a share of the numbers is held out.

    All numbers with one or two digits are among them, and as many of three digits as a third of those of four.
    """
    drawn = drawn_at(5, code)
    numbers = [*range(100), *drawn.sample(range(100, 1000), 150), *drawn.sample(range(1000, 10_000), 450)]
    drawn.shuffle(numbers)
    for number in numbers:
        if (number > 20 and drawn_at(6, number).random() < share) is held_out:
            from_digits = drawn_at(7, code, number).random() < 0.5
            yield spelled(number, code, words) if from_digits else translated(number, "en", code, words)


def write_pairs(code: str, words: Mapping[str, Spellout], out: Path) -> None:
    """Writes the pairs to tune on and those that are held out."""
    for name, held_out in (("train", False), ("held-out", True)):
        pairs = new_pairs(code, words, held_out=held_out)
        lines = [json.dumps({"source": asked, "target": answer}, ensure_ascii=False) for asked, answer in pairs]
        atomic_write(out / f"{name}.jsonl", "".join(f"{line}\n" for line in lines))


# -- tokenizer and training --------------------------------------------------------------------------------------------


def train_tokenizer(texts: Iterable[str], size: int) -> Any:
    """Trains a byte-level BPE tokenizer that reads digits one by one and ends each text with a mark."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[PAD, END], initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False,
        model_max_length=128,
    )  # fmt: skip


def new_model(sizes: Sizes, tokenizer: Any, seed: int) -> Any:
    """A small BART; its embeddings are tied."""
    from transformers import BartConfig, BartForConditionalGeneration, GenerationConfig

    torch.manual_seed(seed)
    pad, end, heads = tokenizer.pad_token_id, tokenizer.eos_token_id, sizes.heads
    marks = {"pad_token_id": pad, "bos_token_id": end, "eos_token_id": end, "decoder_start_token_id": end}
    config = BartConfig(
        vocab_size=sizes.vocabulary, d_model=sizes.width, encoder_layers=sizes.layers, decoder_layers=sizes.layers,
        encoder_attention_heads=heads, decoder_attention_heads=heads, encoder_ffn_dim=sizes.inner,
        decoder_ffn_dim=sizes.inner, max_position_embeddings=tokenizer.model_max_length, dropout=0.0,
        forced_eos_token_id=None, **marks,
    )  # fmt: skip
    model = BartForConditionalGeneration(config)
    model.generation_config = GenerationConfig(max_new_tokens=64, num_beams=1, **marks)
    return model


def tokens(text: str, tokenizer: Any, draw: random.Random | None = None) -> list[int]:
    """Token numbers of a text; with a source of randomness, half of the time of pieces that it is cut into.

    So tokens are read that words of known languages hide in longer ones, and a new language's words can be made of them
    (Subword Regularization, Kudo, 2018, arXiv:1804.10959).
    """
    places = [at for at in range(1, len(text)) if draw.random() < 0.25] if draw and draw.random() < 0.5 else []
    parts = [text[begin:end] for begin, end in zip([0, *places], [*places, len(text)], strict=True)]
    numbers = tokenizer(parts, add_special_tokens=False)["input_ids"]
    return [number for part in numbers for number in part] + [tokenizer.eos_token_id]


def batch_of(pairs: Sequence[Pair], tokenizer: Any, draw: random.Random | None = None) -> dict[str, Tensor]:
    """The pairs as a model takes them: ``input_ids``, ``attention_mask`` and ``labels``, each ``(rows, length)``."""
    sides = [[torch.tensor(tokens(text, tokenizer, draw)) for text in side] for side in zip(*pairs, strict=True)]
    asked, labels = (pad_sequence(side, batch_first=True, padding_value=-100) for side in sides)
    seen = (asked != -100).long()
    return {"input_ids": asked.masked_fill(seen == 0, tokenizer.pad_token_id), "attention_mask": seen, "labels": labels}


def exact(model: Any, tokenizer: Any, pairs: Sequence[Pair], rows: int = 100) -> float:
    """The share of the pairs that the model answers to the letter."""
    right = 0
    for at in range(0, len(pairs), rows):
        some = pairs[at : at + rows]
        batch = batch_of(some, tokenizer)
        del batch["labels"]
        told = tokenizer.batch_decode(model.generate(**batch), skip_special_tokens=True)
        right += sum(said == answer for said, (_, answer) in zip(told, some, strict=True))
    return right / len(pairs)


def train_base(
    words: Mapping[str, Spellout], out: Path, sizes: Sizes | None = None, *, new: str = "de", seed: int = 0,
    save_every: int = 200, stop_at: int | None = None, read: int = 8000, asked: int = 200,
    say: Callable[[str], None] = print,
) -> Path | None:  # fmt: skip
    """Trains tokenizer and model, and writes the base with its pairs.

    Args:
        words: code of a language -> its words, from :func:`number_words.spellouts`.
        out: where to; an interrupted training there goes on.
        sizes: of the network and of the training.
        new: the language of the pairs to tune on.
        seed: decides everything that is drawn.
        save_every: steps between saved states. stop_at: the step to stop before.
        read: pairs that the tokenizer learns from. asked: pairs of each kind that the trained base is asked.
        say: takes lines for the user.

    Returns:
        The folder of the base; None when stopped before the end.
    """
    sizes = sizes or Sizes()
    out.mkdir(parents=True, exist_ok=True)
    write_pairs(new, words, out)
    draw = drawn_at(seed, "tokenizer")
    tokenizer = train_tokenizer((text for _ in range(read) for text in drawn_pair(draw, words)), sizes.vocabulary)
    model = new_model(sizes, tokenizer, seed)
    say(f"{sum(p.numel() for p in model.parameters()):,} weights, {len(tokenizer)} tokens")

    def loss_at(step: int) -> Tensor:
        draw = drawn_at(seed, step)
        return model(**batch_of([drawn_pair(draw, words) for _ in range(sizes.rows)], tokenizer, draw)).loss

    if not train_steps(model, sizes, out / "training.pt", loss_at, save_every=save_every, stop_at=stop_at, say=say):
        return None
    model.eval()
    for name, pairs in looked_at(drawn_at(seed, "look"), words, asked).items():
        say(f"{name}: {exact(model, tokenizer, pairs):.3f} right")
    model.half().save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    return out / "model"


def looked_at(draw: random.Random, words: Mapping[str, Spellout], count: int) -> dict[str, list[Pair]]:
    """What the trained base is asked: each of its three ways, and languages that it has never read."""
    known = [(draw.choice(KNOWN), draw.choice(KNOWN), number_at(draw)) for _ in range(count)]
    asked = {
        "digits to words": [spelled(number, target, words) for _, target, number in known],
        "words to words": [translated(number, source, target, words) for source, target, number in known],
        "words to digits": [read(number, source, words) for source, _, number in known],
    }
    for code in sorted(set(words) - set(KNOWN)):
        asked[f"new: {LANGUAGES[code]}"] = list(new_pairs(code, words, held_out=True))[:count]
    return asked


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = command_line(__doc__, Sizes(), packages="folder with the unpacked npm package")
    parser.add_argument("--new", choices=sorted(set(LANGUAGES) - set(KNOWN)), default="de", help="language to tune on")
    given = parser.parse_args(arguments)
    train_base(spellouts(given.npm), given.out, sizes_in(given, Sizes), new=given.new, seed=given.seed)


if __name__ == "__main__":
    main()
