"""The command line: the help of every command, and what the commands print and write."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.golden.inputs import DRAWINGS, FACTS, FAULTY, PHOTOS, PROMPT, SETTINGS
from benchmarks.golden.runs import INK, ROBOT

TIMES: Final = re.compile(r"\d+(?:\.\d+)?(?=(?: ?s\b| it/s| GiB))|(?<=\"seconds\": )[\d.]+")
SHORT: Final = ("--steps", 3, "--rank", 2, "--device", "cpu", "--set", "preview_prompts=[]")
DREAMBOOTH: Final = ("dreambooth", "emoji", PHOTOS, "--instance-prompt", PROMPT)
STYLE: Final = ("style", "emoji", DRAWINGS, "--trigger")
COMPLETE: Final = ("complete", "facts", "What is the capital of Kenya?")
TWO_ADAPTERS: Final = ("--adapter", f"robot={ROBOT}:0.8", "--adapter", f"ink={INK}")
PICTURES: Final = ("--seeds", "0..1", "--steps", 4, "-o", "cli/out", "--grid", "cli/sheet.png")
COMMANDS: Final[Mapping[str, tuple[object, ...]]] = {
    "methods": ("methods",),
    "methods-markdown": ("methods", "--markdown"),
    "methods-layers": ("methods", "--layers"),
    "methods-json": ("methods", "--json"),
    "inspect": ("inspect", ROBOT),
    "inspect-json": ("inspect", ROBOT, "--json"),
    "inspect-kohya": ("inspect", "methods/layers/lora-plain/kohya.safetensors"),
    "inspect-peft": ("inspect", "methods/layers/dora-plain/peft"),
    "inspect-soft": ("inspect", "methods/llama/ptuning-lstm/studio.safetensors"),
    "inspect-picture": ("inspect", "pictures/base-0.png"),
    "check": ("check", PHOTOS),
    "check-faulty": ("check", FAULTY, "--instance-prompt", PROMPT, "--resolution", 128),
    "config": (*STYLE, "ink", "-o", "cli/config", "--config", SETTINGS, "--rank", 3),
    "check-style": ("check", DRAWINGS, "--json"),
    "dreambooth": (*DREAMBOOTH, "-o", "cli/robot", *SHORT),
    "dreambooth-again": (*DREAMBOOTH, "-o", "cli/robot", *SHORT),
    "style": (*STYLE, "ink style", "-o", "cli/ink", *SHORT, "--json"),
    "tune": ("tune", "causal-lm", "facts", FACTS, "-o", "cli/facts", *SHORT, "--held-out", 0.1),
    "generate": ("generate", "emoji", PROMPT, "tiger <ink:0.5>", *TWO_ADAPTERS, *PICTURES),
    "complete": (*COMPLETE, "What is bread?", "--adapter", "runs/facts/lora/adapter.safetensors", "--json"),
    "complete-drawn": (*COMPLETE, "--temperature", 0.7, "--seed", 3),
    "no-command": ("dreamboot",),
    "no-base": ("generate", "emojy", "tiger"),
    "no-file": ("inspect", "nothing.safetensors"),
    "no-adapter": ("inspect", "methods/layers/lora-plain/outputs.safetensors"),
    "no-option": ("dreambooth", "emoji", PHOTOS, "--rnk", 3),
    "no-setting": (*STYLE, "ink", "-o", "cli/no", "--set", "stpes=3"),
    "other-settings": (*DREAMBOOTH, "-o", "cli/robot", "--steps", 4),
    "other-base": ("complete", "facts", "Hello", "--adapter", ROBOT),
}
"""Name -> words, in this order: a folder that one command fills is what a later one finds."""


def make_commands() -> None:
    """The help of every command, and what the commands print and write."""
    listed = command("help", "--help").partition("Commands:\n")[2].partition("\n\n")[0]
    for name in re.findall(r"^  (\w[\w-]*)  ", listed, re.MULTILINE):
        command(f"help-{name}", name, "--help")
    command("help-tune-causal-lm", "tune", "causal-lm", "--help")
    command("version", "--version")
    for name, words in COMMANDS.items():
        command(name, *words)
    for log in Path("cli").rglob("log.jsonl"):
        log.unlink()


def command(name: str, *words: object) -> str:
    """Runs ``python -m studio`` in this process; writes down what it says, and returns what it prints."""
    out, err, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["studio", *map(str, words)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            runpy.run_module("studio", run_name="__main__", alter_sys=True)
        code: Any = 0
    except SystemExit as end:
        code = end.code
    finally:
        sys.argv = before
    told = f"$ studio {' '.join(map(str, words))}\n[{code}]\n{out.getvalue()}\n-- stderr\n{err.getvalue()}"
    Path("cli").mkdir(exist_ok=True)
    Path("cli", f"{name}.txt").write_text(TIMES.sub("#", told), encoding="utf-8")
    return out.getvalue()
