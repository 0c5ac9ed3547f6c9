"""Trains a base like the embedded ``speech``: a small Whisper that writes down spoken numbers.

::

    apt-get install espeak-ng                               # the voices
    npm pack cldr-rbnf                                      # unpack it below a folder: NPM_FOLDER/cldr-rbnf/
    OMP_NUM_THREADS=1 python examples/train_speech_base.py NPM_FOLDER OUT

It takes seven minutes on one core. What a step draws follows from the seed and the step alone, so the same command
goes on where an interrupted one stopped, with the same bits. ``OUT/model`` opens with ``AutoModelForSpeechSeq2Seq`` and
``AutoProcessor``; ``OUT/train`` and ``OUT/held-out`` are folders with recordings in a language that the base has never
heard and a ``metadata.jsonl`` of ``file_name`` and ``text``, each of other numbers by other voices. ``OUT/known`` has a
few recordings of what it hears from the beginning.

The base hears numbers below 100, and some of two or three digits one by one, in the languages of :data:`KNOWN`. What it
hears lasts two seconds, and it writes letter by letter.
"""

from __future__ import annotations

import io
import json
import random
import subprocess
import wave
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from base_training import command_line, drawn_at, sizes_in, train_steps
from number_words import LANGUAGES, Spellout, spellouts
from numpy.typing import NDArray
from torch import Tensor

from studio.atomic import atomic_path, atomic_write

VOICES: Final = {
    "en": ("en-us", "en-gb", "en-gb-x-rp", "en-gb-scotland"), "es": ("es", "es-419"), "fr": ("fr-fr", "fr-be"),
    "nl": ("nl",), "sv": ("sv",), "de": ("de",), "da": ("da",), "it": ("it",), "pt": ("pt-br",), "tr": ("tr",),
}  # fmt: skip
KNOWN: Final = ("en", "es", "fr", "nl", "sv")
SPEAKERS: Final = ("m1", "m2", "m3", "m4", "m5", "f1", "f2", "f3", "f4")
NEW_SPEAKERS: Final = ("m6", "m7", "m8", "f5")  # of the recordings that are held out
RATE, SECONDS = 16_000, 2
MARKS: Final = (
    "<|endoftext|>", "<|startoftranscript|>", "<|translate|>", "<|transcribe|>", "<|startofprev|>", "<|nospeech|>",
    "<|notimestamps|>",
)  # fmt: skip
Wave = NDArray[np.int16]
"""Samples of one recording, 16,000 a second."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of the network and of the training; the defaults are the embedded base's."""

    steps: int = 1000
    rows: int = 32
    clips: int = 4000
    width: int = 128
    layers: int = 2
    heads: int = 4
    inner: int = 384
    rate: float = 3e-3
    matrix_rate: float = 2e-2
    warmup: int = 100


# -- recordings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """What is said, and how: ``voice`` is espeak-ng's, ``speed`` words a minute, ``pitch`` from 0 to 99."""

    text: str
    voice: str
    speed: int
    pitch: int


Voice = Callable[[Said], Wave]
"""Says a text."""


def speak(said: Said) -> Wave:
    """Lets espeak-ng say it, and returns the samples at 16,000 a second, without the silence around them."""
    command = ["espeak-ng", "-v", said.voice, "-s", str(said.speed), "-p", str(said.pitch), "--stdout", said.text]
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    with wave.open(io.BytesIO(told)) as file:
        rate = file.getframerate()
    samples = np.frombuffer(told[44:], dtype="<i2").astype(np.float64)  # a stream's header counts no samples
    samples = resampled(samples, rate)
    loud = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max())
    samples = samples[max(loud[0] - 400, 0) : loud[-1] + 800]
    return np.round(samples * (20_000 / np.abs(samples).max())).astype("<i2")


def resampled(samples: NDArray[np.float64], rate: int) -> NDArray[np.float64]:
    """The same sound at 16,000 samples a second, from a higher rate: what lies above 8,000 Hz is left out."""
    count = round(len(samples) * RATE / rate)
    spectrum: NDArray[np.complex128] = np.fft.rfft(samples)[: count // 2 + 1]
    return np.fft.irfft(spectrum, count) * count / len(samples)


def drawn_text(draw: random.Random, code: str, words: Mapping[str, Spellout]) -> str:
    """Draws a number below 100, or two or three digits one by one."""
    if draw.random() < 0.7:
        return words[code](draw.randrange(100))
    return " ".join(words[code](draw.randrange(10)) for _ in range(draw.choice((2, 2, 3))))


def drawn_said(draw: random.Random, text: str, code: str, speakers: Sequence[str]) -> Said:
    """Draws who says a text, how fast and how high."""
    voice = f"{draw.choice(VOICES[code])}+{draw.choice(speakers)}"
    return Said(text, voice, draw.randint(140, 200), draw.randint(30, 70))


def drawn_clip(draw: random.Random, words: Mapping[str, Spellout], voice: Voice) -> tuple[Wave, str]:
    """Draws a recording that fits, in a language that the base knows, and what is said."""
    while True:
        code = draw.choice(KNOWN)
        said = drawn_said(draw, drawn_text(draw, code, words), code, SPEAKERS)
        samples = voice(said)
        if len(samples) < (SECONDS - 0.1) * RATE:
            return samples, said.text


def clips(words: Mapping[str, Spellout], count: int, file: Path, seed: int, voice: Voice) -> list[tuple[Wave, str]]:
    """Returns so many recordings, and keeps them in a file for a training that goes on."""
    if not file.is_file():
        with ThreadPoolExecutor(8) as pool:  # they wait for espeak-ng
            made = list(pool.map(lambda at: drawn_clip(drawn_at(seed, "clip", at), words, voice), range(count)))
        with atomic_path(file) as temporary:
            held = [(torch.from_numpy(samples.astype(np.int16)), text) for samples, text in made]
            torch.save(held, temporary)
    return [(samples.numpy(), text) for samples, text in torch.load(file, weights_only=True)]


def new_clips(code: str, words: Mapping[str, Spellout], *, held_out: bool) -> Iterator[tuple[str, Said]]:
    """Recordings of a new language: the numbers below 100 but twenty, and those twenty by new voices, twice each.

    Those twenty are made of words that others are made of too: none of them stands alone. Of the others those that
    stand alone are said twice.
    """
    hidden = set(drawn_at(5, code).sample([number for number in range(21, 100) if number % 10], 20))
    for number in range(100):
        for take in range(2 if held_out or number < 21 else 1) if (number in hidden) is held_out else ():
            speakers = NEW_SPEAKERS if held_out else SPEAKERS
            yield f"{number:02d}-{take}.wav", drawn_said(drawn_at(6, number, take), words[code](number), code, speakers)


def known_clips(code: str, words: Mapping[str, Spellout], count: int) -> Iterator[tuple[str, Said]]:
    """Numbers in a language that the base knows, by voices that it has not heard."""
    draw = drawn_at(8, code)
    for at in range(count):
        yield f"{code}-{at}.wav", drawn_said(draw, words[code](draw.randrange(100)), code, NEW_SPEAKERS)


def write_recordings(code: str, words: Mapping[str, Spellout], out: Path, voice: Voice) -> None:
    """Writes the recordings to tune on, those that are held out, and a few of each language that the base knows."""
    write_folder(out / "train", new_clips(code, words, held_out=False), voice)
    write_folder(out / "held-out", new_clips(code, words, held_out=True), voice)
    write_folder(out / "known", (clip for known in KNOWN for clip in known_clips(known, words, 3)), voice)


def write_folder(folder: Path, recordings: Iterable[tuple[str, Said]], voice: Voice) -> None:
    """Writes recordings below their names, and ``metadata.jsonl`` with what is said in each."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for file, said in recordings:
        with atomic_path(folder / file) as temporary, wave.open(str(temporary), "wb") as written:
            written.setparams((1, 2, RATE, 0, "NONE", "not compressed"))
            written.writeframes(voice(said).tobytes())
        lines.append(json.dumps({"file_name": file, "text": said.text}, ensure_ascii=False))
    atomic_write(folder / "metadata.jsonl", "".join(f"{line}\n" for line in lines))


def read_recordings(folder: Path) -> list[tuple[Wave, str]]:
    """Reads a folder that :func:`write_recordings` has written."""
    found = []
    for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        with wave.open(str(folder / entry["file_name"])) as file:
            found.append((np.frombuffer(file.readframes(file.getnframes()), dtype="<i2"), entry["text"]))
    return found


# -- processor and training --------------------------------------------------------------------------------------------


def new_processor() -> Any:
    """Whisper's processor, hearing two seconds, with a tokenizer that writes byte by byte and has Whisper's marks."""
    from tokenizers import pre_tokenizers
    from transformers import WhisperFeatureExtractor, WhisperProcessor, WhisperTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = WhisperTokenizer(vocab={letter: at for at, letter in enumerate(letters)}, merges=[])
    tokenizer.add_special_tokens({"extra_special_tokens": list(MARKS[1:])})
    tokenizer.pad_token = MARKS[0]
    tokenizer.set_prefix_tokens()  # again: the marks were not there when it was made
    return WhisperProcessor(WhisperFeatureExtractor(chunk_length=SECONDS, sampling_rate=RATE), tokenizer)


def new_model(sizes: Sizes, processor: Any, seed: int) -> Any:
    """A small Whisper."""
    from transformers import GenerationConfig, WhisperConfig, WhisperForConditionalGeneration

    torch.manual_seed(seed)
    tokenizer, heads = processor.tokenizer, sizes.heads
    end, begin, silent = (tokenizer.convert_tokens_to_ids(mark) for mark in (MARKS[0], MARKS[1], MARKS[-1]))
    config = WhisperConfig(
        vocab_size=len(tokenizer), num_mel_bins=80, d_model=sizes.width, encoder_layers=sizes.layers,
        decoder_layers=sizes.layers, encoder_attention_heads=heads, decoder_attention_heads=heads,
        encoder_ffn_dim=sizes.inner, decoder_ffn_dim=sizes.inner, max_source_positions=50 * SECONDS,
        max_target_positions=64, pad_token_id=end, bos_token_id=end, eos_token_id=end, decoder_start_token_id=begin,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        decoder_start_token_id=begin, bos_token_id=end, eos_token_id=end, pad_token_id=end,
        no_timestamps_token_id=silent, is_multilingual=False, return_timestamps=False, max_length=64,
    )  # fmt: skip
    return model


def worn(samples: Wave, draw: random.Random) -> NDArray[np.float32]:
    """A recording at another place, as loud as chance wants it, with noise 25 to 60 dB below."""
    room = SECONDS * RATE - len(samples)
    heard = np.zeros(SECONDS * RATE, dtype=np.float32)
    at = draw.randrange(min(room, RATE // 2) + 1)
    heard[at : at + len(samples)] = samples.astype(np.float32) / 32_768
    noise = np.random.default_rng(draw.randrange(2**32)).standard_normal(len(heard), dtype=np.float32)
    return (heard + noise * 0.1 * 10 ** (-draw.uniform(25, 60) / 20)) * 10 ** (-draw.uniform(0, 12) / 20)


def batch_of(heard: Sequence[NDArray[Any]], texts: Sequence[str], processor: Any) -> dict[str, Tensor]:
    """The recordings as a model takes them: ``input_features`` ``(rows, 80, 200)``, ``labels`` ``(rows, length)``."""
    told = processor.feature_extractor(list(heard), sampling_rate=RATE, return_tensors="pt")
    written = processor.tokenizer(list(texts), padding=True, return_tensors="pt")
    labels = written["input_ids"].masked_fill(written["attention_mask"] == 0, -100)
    return {"input_features": told["input_features"], "labels": labels[:, 1:]}  # the model begins by itself


def exact(model: Any, processor: Any, pairs: Sequence[tuple[Wave, str]], rows: int = 50) -> float:
    """The share of the recordings that the model writes down to the letter."""
    right = 0
    for at in range(0, len(pairs), rows):
        some = pairs[at : at + rows]
        heard = [samples.astype(np.float32) / 32_768 for samples, _ in some]
        batch = batch_of(heard, [text for _, text in some], processor)
        written = processor.batch_decode(model.generate(batch["input_features"]), skip_special_tokens=True)
        right += sum(said == text for said, (_, text) in zip(written, some, strict=True))
    return right / len(pairs)


def train_base(
    words: Mapping[str, Spellout], out: Path, sizes: Sizes | None = None, *, new: str = "de", seed: int = 0,
    save_every: int = 200, stop_at: int | None = None, asked: int = 50, voice: Voice = speak,
    say: Callable[[str], None] = print,
) -> Path | None:  # fmt: skip
    """Trains the model, and writes the base with its recordings.

    Args:
        words: code of a language -> its words, from :func:`number_words.spellouts`.
        out: where to; an interrupted training there goes on.
        sizes: of the network and of the training.
        new: the language of the recordings to tune on.
        seed: decides everything that is drawn.
        save_every: steps between saved states. stop_at: the step to stop before.
        asked: recordings of each language that the trained base is asked.
        voice: says a text.
        say: takes lines for the user.

    Returns:
        The folder of the base; None when stopped before the end.
    """
    sizes = sizes or Sizes()
    out.mkdir(parents=True, exist_ok=True)
    write_recordings(new, words, out, voice)
    known, processor = clips(words, sizes.clips, out / "clips.pt", seed, voice), new_processor()
    model = new_model(sizes, processor, seed)
    say(f"{sum(p.numel() for p in model.parameters()):,} weights, {len(known)} recordings")

    def loss_at(step: int) -> Tensor:
        draw = drawn_at(seed, step)
        some = draw.choices(known, k=sizes.rows)
        return model(
            **batch_of([worn(samples, draw) for samples, _ in some], [text for _, text in some], processor)
        ).loss

    if not train_steps(model, sizes, out / "training.pt", loss_at, save_every=save_every, stop_at=stop_at, say=say):
        return None
    model.eval()
    for code in KNOWN:
        heard = [(voice(said), said.text) for _, said in known_clips(code, words, asked)]
        say(f"{LANGUAGES[code]}: {exact(model, processor, heard):.3f} right")
    say(f"new: {LANGUAGES[new]}: {exact(model, processor, read_recordings(out / 'held-out')[:asked]):.3f} right")
    model.half().save_pretrained(out / "model")
    processor.save_pretrained(out / "model")
    return out / "model"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = command_line(__doc__, Sizes(), packages="folder with the unpacked npm package")
    parser.add_argument("--new", choices=sorted(set(VOICES) - set(KNOWN)), default="de", help="language to tune on")
    given = parser.parse_args(arguments)
    train_base(spellouts(given.npm), given.out, sizes_in(given, Sizes), new=given.new, seed=given.seed)


if __name__ == "__main__":
    main()
