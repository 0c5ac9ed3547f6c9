"""What data sets are made of: lines, messages, names, settings, and what each must come to."""
# ruff: noqa: E501

from __future__ import annotations

import codecs
import json
from typing import Any, Final

from PIL import Image

from benchmarks.reliability._pictures import encoded, plain
from benchmarks.reliability._terminal import HOSTILE

__all__ = [
    "ANSWER", "ASKED", "BARE", "CAPTIONS", "CHAT", "MESSAGES", "NAMES", "OPENED", "OPTIONS", "PAIR", "RIGHT_LINES", "RIGHT_SETTINGS", "SETS",
    "TIMES", "TOLD", "UNREADABLE", "USER", "WORDS", "WRONG_LINES", "WRONG_SAMPLES", "WRONG_SETTINGS",
]  # fmt: skip

WORDS: Final = "ein Hündchen für 5 €"
TOLD: Final = HOSTILE.replace("\0", "")
"""What a name or a word on the command line can hold of it."""

CAPTIONS: Final[dict[str, bytes]] = {
    "utf-8": WORDS.encode(), "utf-8 with a mark": codecs.BOM_UTF8 + WORDS.encode(),
    "utf-16, little first": codecs.BOM_UTF16_LE + WORDS.encode("utf-16-le"), "utf-16, big first": codecs.BOM_UTF16_BE + WORDS.encode("utf-16-be"),
    **{f"line ends {ends!a}": WORDS.replace(" ", ends).encode() for ends in ("\r\n", "\r", "\n\n", "\x85", "\u2028", "\t", "\u00a0", "\f")},
}  # fmt: skip
"""All of them say WORDS."""
UNREADABLE: Final[dict[str, bytes]] = {
    **{name: WORDS.encode(name) for name in ("utf-16-le", "utf-16-be", "cp1252", "cp1140")},
    "utf-32": codecs.BOM_UTF32_LE + WORDS.encode("utf-32-le"), "utf-32 backwards": codecs.BOM_UTF32_BE + WORDS.encode("utf-32-be"),
    **{name: "大きな犬".encode(name) for name in ("shift-jis", "euc-jp", "gb18030", "big5")}, "koi8-r": "собака".encode("koi8-r"),
    "half a character": WORDS.encode()[:-1], "utf-16 of odd length": codecs.BOM_UTF16_LE + b"a\0b", "overlong": b"a \xc0\xaf dog",
    "surrogates": b"\xed\xa0\x80\xed\xb0\x80", "a picture": plain(), "zeros": b"\0" * 100, "nothing": b"", "blanks": b" \n\t\r\n",
    "a mark alone": codecs.BOM_UTF8, "a UTF-16 mark alone": codecs.BOM_UTF16_LE, "more than a megabyte": b"dog " * 300_000, "invisible": "\ufeff\u200b".encode(),
}  # fmt: skip
LINE: Final = {"file_name": "a.png", "text": WORDS}
RIGHT_LINES: Final[list[Any]] = [
    ("right", json.dumps(LINE), WORDS), ("not ASCII", json.dumps(LINE, ensure_ascii=False), WORDS),
    ("dots", json.dumps({**LINE, "file_name": "./a.png"}), WORDS), ("caption", json.dumps({"file_name": "a.png", "caption": WORDS}), WORDS),
    ("blank lines", f"\n\n{json.dumps(LINE)}\r\n\r\n", WORDS), ("a separator in a text", json.dumps({**LINE, "text": "a\u2028b"}, ensure_ascii=False), "a b"),
    ("other columns", json.dumps({**LINE, "x": [1, {}], "y": None}), WORDS),
]  # fmt: skip
WRONG_LINES: Final[list[str]] = [
    "{", "[]", "3", "null", '"x"', "{}", '{"file_name": 3, "text": "x"}', '{"file_name": "a.png"}', '{"file_name": "a.png", "text": 3}',
        '{"file_name": "a.png", "text": ""}', '{"file_name": "a.png", "text": null}', '{"file_name": "a.png", "text": "\\ud800"}', "{" * 100_000,
    "[" * 100_000, '{"file_name": "a.png", "text": "x"} x', '[{"file_name": "a.png", "text": "x"}]', '{"file_name": ["a.png"], "text": "x"}', "\0",
        '{"file_name": "a.png", "text": ' + "9" * 5000 + "}", '{"file_name": "a.png", "text": NaN}', '{"text": "x"}', "a.png,x",
        '{"file_name": "a.png", "text": "x", "text": "y"}',
]  # fmt: skip
NAMES: Final[list[str]] = [
    TOLD, "a\nb", "caf\udce9", "\udcff" * 80, "-rf", "--help", "a b", " ", "a'\"$(id)`", "%s{0}", "\U0001f415", "犬" * 80, "a" * 250, "é", "é",
    "\u202egnp", "a.png", "...a", "con", "a:1", "[red]x[/red]", "metadata.jsonl:3", "\\x1b", "a\tb",
]  # fmt: skip
TIMES: Final[list[tuple[str, int | None]]] = [
    ("10_sks dog", 10), ("1_dog", 1), ("007_dog", 7), ("0_off", 0), ("10000_dog", 10_000), ("10_", None), ("_10", None), ("-3_dog", None),
    ("1e3_dog", None), ("10-dog", None), ("10 dog", None), ("1.5_dog", None), ("x10_dog", None), ("10_dog_20", 10), ("٣_dog", 3), ("²_dog", None),
]  # fmt: skip
"""Names of folders, and how often their pictures are drawn; None: once."""
PAIR: Final = {"prompt": "Tin is ", "completion": "a metal, Sn."}
ASKED: Final = {"instruction": "Name a metal.", "output": "Tin."}
USER: Final = {"role": "user", "content": "Hi"}
ANSWER: Final = {"role": "assistant", "content": "Yes?"}
CHAT: Final = {"messages": [USER, ANSWER]}
BARE: Final = {"text": "Tin is a metal."}
OPENED: Final[list[Any]] = [
    ("one token", [{"prompt": "", "completion": "."}]), ("blanks around", [{**PAIR, "completion": "  a \n b  "}]), ("the same twice", [PAIR] * 3),
    ("two turns", [{"messages": [USER, ANSWER, USER, ANSWER]}]), ("an answer in another", [{"messages": [USER, {**ANSWER, "content": "Hi"}]}]),
    ("a system turn", [{"messages": [{"role": "system", "content": "Be brief."}, USER, ANSWER]}]), ("10,000 words", [{**PAIR, "completion": "tin " * 10_000}]),
    ("a megabyte", [{"text": "x" * 1_000_000}]), ("unknown characters", [{"text": "\U0001f415\u0378 犬"}]), ("2,000 lines", [{**PAIR, "prompt": f"{n} "} for n in range(2000)]),
    ("a question without end", [{"prompt": "x" * 5000, "completion": "y"}, PAIR]),
]  # fmt: skip
WRONG_SAMPLES: Final[list[bytes]] = [
    b"", b"\n\n \n", b"{", b"[]", b"3", b"null", b'"x"', b"{}", b"NaN", b"{'text': 'x'}", b'{"text": NaN}', b'{"text": 1e999}', b'{"text": ["x"]}',
    b'{"text": ""}', b'{"text": "  "}', b'{"text": null}', b'{"txt": "x"}', b'{"prompt": "x"}', b'{"prompt": "x", "completion": ""}', b'{"completion": "x"}',
    b'{"prompt": 3, "completion": "x"}', b'{"instruction": "x"}', b'{"instruction": "x", "output": NaN}', b'{"instruction": "x", "input": 3, "output": "y"}',
    b'[{"text": "x"}]', b'[\n{"text": "x"}\n]', b"text\nx\n", b"prompt,completion\na,b\n", b"a dog\n", b"{" * 100_000, b"[" * 100_000, b'{"a":' * 50_000,
    b'{"text": "\\ud800"}', b'{"text": "x"} {"text": "y"}', b'{"text": "x"', b'{"text": "x"}\n{"text": ', b"\xff\xfe\xff", b'{"text": "caf\xe9"}', b"\0" * 1000,
    b'{"text": "x", "prompt": "y", "completion": "z"}', b'{"text": ' + b"9" * 5000 + b"}", b"PK\3\4", b"PAR1" + b"\0" * 50, codecs.BOM_UTF8, codecs.BOM_UTF16_LE + b"a",
    codecs.BOM_UTF32_LE + json.dumps(BARE).encode("utf-32-le"), b'{"text": "x", "text": "y"}', b'{"text": true}', encoded(Image.new("RGB", (9, 9))),
]  # fmt: skip
MESSAGES: Final[list[Any]] = [
    ("no list", "x"), ("none", []), ("a text", ["x"]), ("no role", [{"content": "x"}]), ("no content", [{"role": "user"}]), ("no answer", [USER]),
    ("answer alone", [ANSWER]), ("role Human", [{"role": "Human", "content": "x"}, ANSWER]), ("role 3", [{"role": 3, "content": "x"}, ANSWER]), ("role None", [{"role": None, "content": "x"}, ANSWER]),
    ("role list", [{"role": ["user"], "content": "x"}, ANSWER]), ("a late system", [USER, {"role": "system", "content": "x"}, ANSWER]), ("more fields", [{**USER, "weight": 0}, ANSWER]),
    ("content of parts", [{"role": "user", "content": [{"type": "text", "text": "x"}]}, ANSWER]), ("empty answer", [USER, {**ANSWER, "content": ""}]), ("null", None),
    ("a terminal's role", [{"role": HOSTILE, "content": "x"}, ANSWER]), ("a long role", [{"role": "u" * 5000, "content": "x"}, ANSWER]), ("nothing but system", [{"role": "system", "content": "x"}]),
]  # fmt: skip
RIGHT_SETTINGS: Final[list[Any]] = [
    ("bare", "steps = 7", "steps", 7), ("in its table", "[training]\nsteps = 7", "steps", 7), ("a whole number for a number", "learning_rate = 1", "learning_rate", 1.0),
    ("in hexadecimal", "seed = 0xff", "seed", 255), ("with a low line", "steps = 1_000", "steps", 1000), ("the largest seed", f"seed = {2**63 - 1}", "seed", 2**63 - 1),
    ("line ends", "steps = 7\r\nseed = 3\r\n", "seed", 3), ("a table of steps", "steps = 9\n[training.grow]\n5 = 32", "grow", {"5": 32}),
]  # fmt: skip
WRONG_SETTINGS: Final[list[tuple[str, str]]] = [
    ("steps = 0", "steps"), ("steps = -1", "steps"), ("steps = 1.5", "steps"), ('steps = "many"', "steps"), ("steps = true", "steps"), ("steps = nan", "steps"), ("steps = []", "steps"),
    ("steps = 1979-05-27", "steps"), ("learning_rate = nan", "learning_rate"), ("learning_rate = inf", "learning_rate"), ("learning_rate = 0", "learning_rate"), ("learning_rate = -1e-3", "learning_rate"),
    ("seed = -1", "seed"), (f"seed = {2**63}", "seed"), ("seed = 1.0", "seed"), ("batch_size = 0", "batch_size"), ("clip = nan", "clip"), ("clip = inf", "clip"), ("weight_decay = nan", "weight_decay"),
    ("beta2 = 1", "beta2"), ("beta2 = nan", "beta2"), ("ema = 1.0", "ema"), ("ema = nan", "ema"), ("warmup = -1", "warmup"), ('schedule = "linear"', "schedule"), ('optimizer = "sgd"', "optimizer"),
    ("rank = 0", "rank"), ("rank = -4", "rank"), ("rank = 4.5", "rank"), ("rank = nan", "rank"), ('rank = "x"', "rank"), ("alpha = nan", "alpha"), ("alpha = inf", "alpha"), ("dropout = 2", "dropout"),
    ("dropout = nan", "dropout"), ('method = "lorra"', "lorra"), ("method = 3", "3"), ("method = []", "method"), ("targets = 3", "targets"), ("targets = []", "targets"), ('targets = [""]', "target"),
    ("resolution = 0", "resolution"), ("resolution = -64", "resolution"), ("resolution = [64]", "resolution"), ("resolution = [64, 64, 64]", "resolution"), ('resolution = "64x64"', "resolution"),
    ("resolution = 1000000000", "resolution"), ("resolution = 65", "resolution"), ("gamma = nan", "gamma"), ("gamma = -1", "gamma"), ('weighting = "x"', "weighting"), ('prior = "x"', "prior"), ("prior_weight = nan", "prior_weight"),
    ("prior_weight = -1", "prior_weight"), ("prior_rows = 0", "prior_rows"), ("class_count = 0", "class_count"), ('crop = "left"', "crop"), ("flip = 1", "flip"), ("preview_steps = 0", "preview_steps"),
    ("preview_guidance = nan", "preview_guidance"), ("preview_seeds = [-1]", "preview_seeds"), ('preview_seeds = ["x"]', "preview_seeds"), ("preview_prompts = [3]", "preview_prompts"), ("caption_encoding = 3", "caption_encoding"),
    ("stepz = 7", "steps"), ("[trainning]\nsteps = 7", "train"), ("[task]\n[task.steps]\nx = 1", "x"), ("[adapter.rank]\nx = 1", "rank"), ('"steps.x" = 1', "steps"), ('"" = 1', "setting"),
    ("steps = 7\nsteps = 8", "toml"), ("steps", "toml"), ("= 7", "toml"), ("[", "toml"), ("steps = 7 8", "toml"), ("\0", "toml"), ("x = " + "[" * 50_000, "toml"), ("a." * 5000 + "b = 1", ""),
    ("x = '''", "toml"), ("steps = " + "9" * 5000, ""), (f'"{"k" * 5000}" = 1', "setting"), ("[[training]]\nsteps = 7", "training"),
    ("cache = 3", "cache"), ("device = 3", "device"), ('device = "gpu9"', "gpu9"), ('precision = "fp8"', "precision"),
    (f"{json.dumps(HOSTILE)} = 1", "setting"), (f"schedule = {json.dumps(HOSTILE)}", "schedule"), (f"device = {json.dumps(HOSTILE)}", ""), ("inputs = 3\nfree = 3", ""),
    ("[inputs]\n[free]\n[task]\ntask = 3", ""), ("[inputs]\n[free]\n[task]\nlearning_rates = 3", ""), ('[inputs]\n[free]\nprevious = "x"\n', ""), ("[inputs]\n[free]\npreviews = 3", ""),
]  # fmt: skip
SETS: Final[list[tuple[str, str]]] = [
    ("steps", "steps"), ("=3", "=3"), ("steps=", "steps"), ("steps=x", "steps"), ("stepz=3", "steps"), ("steps=nan", "steps"), ("steps=1e3", "steps"), ("steps=٣x", "steps"), ("rank=[", "rank"),
    ("rank=99999999999", "rank"), ("targets=nowhere", "nowhere"), ("targets=re:(", "regular expression"), ("targets=re:(a+)+$", "re:("), ("exclude=nowhere", "nowhere"), (f"{TOLD[:-3]}=1", "setting"),
    (f"schedule={TOLD}", "schedule"), ("steps=\ud800", "steps"), ("instance_prompt=", "instance"), ("task.steps.x=1", "steps"), ("grow={0=4}", "grow"), ("grow={5=4, 6=4}", "grow"), ("grow=5", "grow"),
    ("steps=" + "9" * 5000, "steps"), ("x" * 5000 + "=1", "setting"),
]  # fmt: skip
OPTIONS: Final[list[tuple[str, str]]] = [
    ("--steps", "0"), ("--steps", "x"), ("--steps", "-1"), ("--steps", "1.5"), ("--rank", "0"), ("--rank", "x"), ("--learning-rate", "nan"), ("--learning-rate", "0"), ("--learning-rate", "inf"), ("--batch-size", "0"),
    ("--seed", "-1"), ("--seed", str(2**64)), ("--resolution", "0"), ("--resolution", "64x"), ("--resolution", "65"), ("--resolution", "10000000"), ("--method", "lorra"), ("--method", ""), ("--targets", ""), ("--targets", "attn,,x"),
    ("--preview", ""), ("--preview", "a dog"), ("--preview-every", "-1"), ("--checkpoint-every", "-1"), ("--guidance", "nan"), ("--sampling-steps", "0"), ("--prior", "x"), ("--class-images", "nowhere"), ("--from", "nowhere"),
    ("--config", "nowhere"), ("--caption-encoding", "x"), ("--dtype", "x"), ("--device", "x"), ("--device", TOLD), ("--class-prompt", ""), ("--instance-prompt", "  "), ("--instance-prompt", "\ud800"),
]  # fmt: skip
