"""What is asked of the pipelines: pairs that mean the same, and what means nothing."""
# ruff: noqa: E501

from __future__ import annotations

from typing import Any, Final

import numpy
import torch

from benchmarks.reliability._terminal import HOSTILE
from studio import Strength

__all__ = ["EQUAL", "TAGS", "TEXTS", "WORDS", "WRITTEN", "WRONG", "WRONG_TAGS"]

NAN: Final = float("nan")
INF: Final = float("inf")

TAGS: Final[list[tuple[str, str, Any]]] = [
    ("a dog", "a dog", None), ("", "", None), ("<dog>", "", {"dog": 1.0}), ("a <dog:0.8>", "a", {"dog": 0.8}), ("a<dog:0.8>b", "ab", {"dog": 0.8}),
    ("a <dog:-1> b", "a b", {"dog": -1.0}), ("< dog : 0.5 >", "", {"dog": 0.5}), ("<dog:.5>", "", {"dog": 0.5}), ("<dog:5.>", "", {"dog": 5.0}), ("<dog:1e-3>", "", {"dog": 0.001}),
    ("<dog:0>", "", {"dog": 0.0}), ("<dog:-0>", "", {"dog": 0.0}), ("<dog:0.5> <ink:0.25>", "", {"dog": 0.5, "ink": 0.25}), ("<lora:dog>", "", {"dog": 1.0}), ("<lora:dog:0.5>", "", {"dog": 0.5}),
    ("<lora:dog:0.3:0.8>", "", {"dog": Strength(1.0, text_encoder=0.3, unet=0.8)}), ("<dog:unet=0.5>", "", {"dog": Strength(1.0, unet=0.5)}), ("<dog:te=0.5>", "", {"dog": Strength(1.0, text_encoder=0.5)}),
    ("<lora:dog:te=0.3:unet=0.8>", "", {"dog": Strength(1.0, text_encoder=0.3, unet=0.8)}), ("<dog:unet=0.5,text_encoder=0.25>", "", {"dog": Strength(1.0, unet=0.5, text_encoder=0.25)}),
    ("i <3 you", "i <3 you", None), ("a < b", "a < b", None), ("a > b", "a > b", None), ("\\<dog\\>", "<dog>", None), ("\\<dog:0.8\\>", "<dog:0.8>", None), ("\\<dog> x", "<dog> x", None),
    ("a <dog:0.5>\n b", "a\n b", {"dog": 0.5}), ("<dog\n:0.8>", "", {"dog": 0.8}), ("<dog:+0.5>", "", {"dog": 0.5}), (">", ">", None), ("<", "<", None), ("<<dog>", "<", {"dog": 1.0}), ("<dog>>", ">", {"dog": 1.0}),
]  # fmt: skip
WRONG_TAGS: Final[list[str]] = [
    "<>", "< >", "<cat>", "<Dog>", "<dog:>", "<dog:x>", "<dog:nan>", "<dog:inf>", "<dog:-inf>", "<dog:1e999>", "<dog:0x1>", "<dog:1_0>", "<dog:0,8>", "<dog:0.5:0.5>", "<dog:0.5>" * 2, "<dog> <dog:0.5>",
    "<dog:unet=>", "<dog:unet=x>", "<dog:unet=nan>", "<dog:vae=1>", "<dog:=1>", "<dog:unet=1=2>", "<dog:0.8", "<dog:0.8 x", "<lora:dog:0.8", "<lora:>", "<lora:dog:1:2:3>", "<lora:cat:1>", "<:0.8>", "<dog 0.8>", "<dog=0.8>",
    "<dog:0.8:>", "<dog::0.8>", "<dog:--1>", "<dog:1 2>", "<dog:0.8\\>", "<d\x1bog>", "<dog\ud800>", "<dog:\ud800>", "<dog:" + "9" * 5000 + ">", "<" + "d" * 10_000 + ">", "<dog:٣x>", "<dog:unet=1,unet=2>",
    "<dog:unet=0.5,te=0.3,unet=1>", "<lora:dog:te=0.3:te=0.5>", "<dog:½>", "<dog:0.8;ink:0.3>", "<../dog>", "<dog.safetensors:0.8>", "<b>dog</b>", "<dog:" + "unet=1," * 3000 + ">",
]  # fmt: skip

EQUAL: Final[dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "a seed alone": ({"seeds": 3}, {"seeds": (3,)}), "a list": ({"seeds": [3, 4]}, {"seeds": (3, 4)}), "a range": ({"seeds": range(2)}, {"seeds": (0, 1)}),
    "numpy's seed": ({"seeds": numpy.int64(3)}, {"seeds": 3}), "torch's seed": ({"seeds": torch.tensor(3)}, {"seeds": 3}), "numpy's seeds": ({"seeds": numpy.arange(2)}, {"seeds": (0, 1)}),
    "torch's seeds": ({"seeds": torch.arange(2)}, {"seeds": (0, 1)}), "a generator of seeds": ({"seeds": lambda: (n for n in (1, 2))}, {"seeds": (1, 2)}), "a list of numpy's": ({"seeds": [numpy.uint8(3)]}, {"seeds": 3}),
    "the largest seed": ({"seeds": 2**63 - 1}, {"seeds": [2**63 - 1]}), "a tuple of prompts": ({"prompt": ("tiger", "cat")}, {"prompt": ["tiger", "cat"]}), "numpy's text": ({"prompt": numpy.str_("tiger")}, {"prompt": "tiger"}),
    "the same prompt twice": ({"prompt": ["tiger", "tiger"]}, {"prompt": ["tiger"] * 2}), "numpy's steps": ({"steps": numpy.int64(2)}, {"steps": 2}), "torch's steps": ({"steps": torch.tensor(2)}, {"steps": 2}),
    "numpy's guidance": ({"guidance": numpy.float64(2.5)}, {"guidance": 2.5}), "torch's guidance": ({"guidance": torch.tensor(2.5)}, {"guidance": 2.5}), "a whole guidance": ({"guidance": 2}, {"guidance": 2.0}),
    "numpy's width": ({"width": numpy.int64(32)}, {"width": 32}), "torch's height": ({"height": torch.tensor(32)}, {"height": 32}), "numpy's batch": ({"batch_size": numpy.int64(1)}, {"batch_size": 1}),
    "no negative": ({"negative": None}, {"negative": ""}), "a tag": ({"prompt": "tiger <dog:0.5>"}, {"blend": {"dog": 0.5}}), "a tag of 0": ({"prompt": "tiger <dog:0>"}, {}), "a tag and a blend": ({"prompt": "tiger <dog:0.5>", "blend": {"ink": 1}}, {"blend": {"dog": 0.5}}),
    "a tag per part": ({"prompt": "tiger <dog:unet=0.5>"}, {"blend": {"dog": Strength(1.0, unet=0.5)}}), "a tag, a name": ({"prompt": "tiger <dog>"}, {"blend": "dog"}), "A1111's tag": ({"prompt": "tiger <lora:dog:0.5>"}, {"blend": {"dog": 0.5}}),
    "numpy's strength": ({"blend": {"dog": numpy.float32(0.5)}}, {"blend": {"dog": 0.5}}), "torch's strength": ({"blend": {"dog": torch.tensor(0.5)}}, {"blend": {"dog": 0.5}}), "a strength per picture": ({"blend": {"dog": [0.5]}}, {"blend": {"dog": 0.5}}),
    "torch's per picture": ({"blend": {"dog": torch.tensor([0.5])}}, {"blend": {"dog": 0.5}}), "a blend per picture": ({"blend": [{"dog": 0.5}]}, {"blend": {"dog": 0.5}}), "an empty blend": ({"blend": {}}, {}), "both": ({"blend": {"dog": 0.5, "ink": 0}}, {"blend": {"dog": 0.5}}),
    "names of other programs": ({"scheduler": "dpmpp_2m", "steps": 2}, {"scheduler": "DPM++ 2M", "steps": 2}), "euler ancestral": ({"scheduler": "k_euler_ancestral"}, {"scheduler": "euler-a"}), "blanks around": ({"prompt": "tiger "}, {"prompt": "tiger"}),
    "guidance 1 and a negative": ({"guidance": 1.0, "negative": "cat"}, {"guidance": 1.0}), "an escaped character": ({"prompt": "tiger \\<3"}, {"prompt": "tiger <3"}),
}  # fmt: skip

WRONG: Final[dict[str, list[Any]]] = {
    "prompt": [None, 3, 2.5, True, [], [None], ["a", 3], b"tiger", {"a": 1}, {}, ["tiger", ["cat"]], object(), numpy.array([1, 2]), torch.tensor([1]), numpy.array(["tiger"]), "x " * 60_000, "tiger (", "{a|b", "[a:b:1.5]", "__nowhere__", "tiger\ud800", ["tiger", "\udcff"], "<cat>"],
    "seeds": ["3", "12", b"12", -2, 2**63, 2**64, 10**30, 1.0, 1.5, NAN, INF, True, [], [[None]], ["3"], [1.0], [[1]], [True], {"a": 1}, object(), numpy.array([0.5]), torch.tensor([[1]]), numpy.float64(1), [-2], 3j, range(0)],
    "steps": ["4", 4.0, 0, -1, 1001, NAN, INF, 10**30, True, [4], numpy.float64(4), torch.tensor([4, 5]), object(), 3j],
    "guidance": ["5", NAN, INF, -INF, -1, -0.001, True, [5], 3j, object(), numpy.float32("nan"), torch.tensor([1.0, 2.0]), b"5", 10**400],
    "width": ["64", 64.0, 0, -8, 63, 1, 8200, 10**9, 10**30, True, NAN, [64], object(), numpy.float64(64)],
    "height": ["64", 64.0, 0, -8, 65, 10**9, True, INF, (64,), torch.tensor([64, 64])],
    "batch_size": [0, -1, 1.0, "1", True, 10**9, NAN, [1], 10**30, object()],
    "negative": [3, b"x", ["x", "y"], object(), "x <dog:0.5>", "x <cat>", "<dog:0.8", "x " * 60_000, "x )", "{x", "\ud800", True, 2.5],
    "scheduler": ["", "eulr", 3, object(), object, "euler\x1b", "e" * 10_000, b"euler", ["euler"], True, {"class": "DDIMScheduler"}, 2.5],
    "blend": [
        "cat", "", 3, 2.5, True, object(), ["dog"], [{"dog": 1}] * 2, [], [None], {"cat": 1}, {3: 1}, {None: 1}, {"dog": NAN}, {"dog": INF}, {"dog": -INF}, {"dog": 10**400}, {"dog": None}, {"dog": "0.5"}, {"dog": "x"}, {"dog": True}, {"dog": []}, {"dog": [1, 2]},
        {"dog": [NAN]}, {"dog": {"nowhere": 1}}, {"dog": object()}, {"dog": 3j}, {"dog": torch.tensor([[1.0]])}, {"dog": torch.tensor(NAN)}, {"dog": numpy.float32("inf")}, {"dog": Strength(1.0, vae=0.5)}, {"dog": Strength(1.0, blocks={"nowhere.*": 0.5})}, {"dog": b"1"}, b"dog", {"dog": 1e38}, {"dog": 1e308},
    ],
    "on_step": [3, "x", object()],
}  # fmt: skip

TEXTS: Final[dict[str, str]] = {
    "empty": "", "a blank": " ", "line ends": "a\nb\r\nc", "a tab": "a\tb", "a zero": "a\0b", "a terminal's": HOSTILE, "a colour": "\x1b[31mred", "emoji": "\U0001f415", "Chinese": "大きな犬", "Arabic": "كلب", "marks": "e\u0301" * 20, "zero width": "a\u200bb\ufeff",
    "not a character": "\uffff\U0010ffff", "half a pair": "a\ud800", "a byte of a name": "a\udcff", "10,000 characters": "x" * 10_000, "10,000 words": "dog " * 10_000, "a megabyte": "y" * 1_000_000, "weights": "(red:1.3) [dog] ((big))", "JSON": '{"a": "b"}', "a quote": "'\"`",
    "a backslash": "\\", "two": "\\\\", "backslashes": "\\\\\\<dog\\\\>", "a mark of the tokenizer": "<|endoftext|>", "another": "<|startoftext|> a", "of chats": "<|user|> x <|end|>", "lines of A1111": "a\nNegative prompt: b\nSteps: 3, Seed: 4", "percent": "%s %d {0} {x}", "a path": "../../etc/passwd",
    "the negative": "Negative prompt: b", "a lora of A1111": "\\<lora:x:1\\>", "html": "a &lt; b", "brackets": "[red]x[/red]", "many tags' characters": "\\<" * 5, "slow to match": "(" * 5000, "slow too": "(((" * 2000 + ":1", "slow tags": "<" * 20_000, "slow ends": ">" * 20_000, "slow names": "<" + "a" * 9000 + " b",
}  # fmt: skip

WRITTEN: Final[dict[str, list[Any]]] = {
    "prompt": [None, 3, True, [None], ["a", 3], b"x", {"a": 1}, object(), "\ud800", "x " * 10_000, "<cat>", "<dog:nan>", "<dog:0.8"],
    "max_new_tokens": [None, 0, -1, 1.5, "2", NAN, True, 2.0, object(), [2], 10**30, 3j],
    "temperature": [None, -1, NAN, INF, "0.5", True, [1], 3j, object(), 10**400],
    "seed": [None, -1, 2**63, 1.0, "3", NAN, True, [3], object(), 10**30],
    "batch_size": [None, 0, -1, 1.5, "2", NAN, True, [2], object()],
    "system": [3, b"x", ["x"], "\ud800", object(), "a <|end|> b" * 2000], "chat": ["yes", 3, object(), [], 0.5],
    "blend": ["cat", 3, [{"dog": 1}] * 2, {"dog": NAN}, {"dog": "x"}, {"dog": [1, 2]}, {"cat": 1}, {"dog": 1e38}, {3: 1}],
}  # fmt: skip

BRACKETED: Final = HOSTILE.replace("\0", "").replace("[", "\\[").replace("]", "\\]")
WORDS: Final[list[tuple[str, tuple[str, ...], str | None]]] = [
    *(("generate", ("tiger", "--seeds", seeds), "seed") for seeds in ("x", "-1", "3..0", "0..", "..3", "0,,3", "0,0", "1.5", str(2**63), "9" * 5000, "0..9999999999", "", " ", "0-3", "0x1", "nan", "٣x")),
    *(("generate", ("tiger", "--seeds", seeds), None) for seeds in ("0", " 3 ", "0,2", "0..1", str(2**63 - 1), "1..1")),
    *(("generate", ("tiger", "--resolution", size), "") for size in ("x", "0", "0x64", "64x0", "-64", "63", "64x", "x64", "64x64x64", "1e3", "9" * 5000, "100000", "64,64", "64.0", "")),
    *(("generate", ("tiger", "--resolution", size), None) for size in ("32", "32x64", "32X64", "32×64")),
    *(("generate", ("tiger", "--steps", steps), "steps") for steps in ("0", "-1", "x", "1.5", "1001", "1000000000", "nan", "", "9" * 5000)),
    *(("generate", ("tiger", "--guidance", guidance), "guidance") for guidance in ("nan", "inf", "-1", "x", "1e999", "", "5,0")), ("generate", ("tiger", "--guidance", "1"), None),
    *(("generate", ("tiger", "--batch-size", size), "batch") for size in ("0", "-1", "x", "1.5", "1000000000", "")),
    *(("generate", ("tiger", "--scheduler", name), "") for name in ("", "eulr", HOSTILE.replace("\0", ""), "e" * 10_000, "\udcff")), ("generate", ("tiger", "--scheduler", "K_Euler_Ancestral"), None),
    *(("generate", ("tiger", "--device", name), "") for name in ("", "x", "cuda:99", HOSTILE.replace("\0", ""))), *(("generate", ("tiger", "--dtype", name), "") for name in ("", "x", "int8", "fp8", HOSTILE.replace("\0", ""))),
    *(("generate", ("tiger", "--adapter", word), "") for word in ("", "nowhere", "nowhere:0.8", "nowhere:x", "a=nowhere", "=nowhere", "a=", "a b=nowhere", "/dev/null", "/dev/zero", "/etc", "x:nan", "x:inf", "x:1e999", HOSTILE.replace("\0", ""), "a" * 5000, "~nobody/x", "\udcff")),
    *(("generate", (prompt,), "") for prompt in ("<cat>", "<cat:0.8", "<>", "dog " * 30_000, "\udcff", "tiger \ud800", f"{HOSTILE.replace(chr(0), '')}<cat>", HOSTILE.replace("\0", ""), "x" * 100_001)),
    *(("generate", (prompt,), None) for prompt in ("", " ", BRACKETED, "i <3 you", "\U0001f415", "a\nb", "(red:1.3) dog", "[red]x[/red]", "\\<cat\\>")),
    *(("generate", ("tiger", "--negative", text), "") for text in ("<cat>", "dog " * 30_000, "\udcff", "cat (")), ("generate", ("tiger", "--negative", "cat", "--guidance", "1"), None), ("generate", ("tiger", "--negative", f"cat {BRACKETED}"), None),
    ("generate", (), "PROMPT"), ("generate", ("tiger", "--sedes", "3"), "sedes"), ("generate", ("tiger", "--seeds"), "seeds"), ("generate", ("tiger", "--json"), None), ("generate", ("tiger", "cat", "--seeds", "0,1"), None),
    *(("complete", ("Hi", "--max-new-tokens", number), "max") for number in ("0", "-1", "x", "1.5", "", "9" * 5000)), *(("complete", ("Hi", "--temperature", number), "temperature") for number in ("nan", "inf", "-1", "x", "")),
    *(("complete", ("Hi", "--seed", number), "seed") for number in ("-1", "x", "1.5", str(2**63), "0..3", "")), *(("complete", ("Hi", "--batch-size", number), "batch") for number in ("0", "-1", "x")),
    *(("complete", (prompt,), "") for prompt in ("<cat>", "<cat:0.8", "word " * 5000, "\udcff", f"<cat>{HOSTILE.replace(chr(0), '')}")), *(("complete", (prompt,), None) for prompt in ("Hi", HOSTILE.replace("\0", ""), "\U0001f415", "a\nb", "i <3 you")),
    *(("complete", ("Hi", "--system", text), "") for text in ("\udcff", "word " * 5000)), ("complete", ("Hi", "--system", HOSTILE.replace("\0", "")), None), ("complete", ("Hi", "--raw", "--system", "x"), "system"), ("complete", ("Hi", "--raw"), None), ("complete", ("Hi", "Ho", "--json"), None),
    ("complete", ("Hi", "--per-sample"), "per-sample"), ("complete", (), "PROMPT"), ("complete", ("", "--raw"), ""), ("complete", ("Hi", "--device", "x"), ""), ("complete", ("Hi", "--adapter", "nowhere"), "nowhere"),
]  # fmt: skip
