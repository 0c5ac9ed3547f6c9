"""``studio tune``: language models, one task each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click

from studio.commands.options import example, output_options, tuning_options
from studio.commands.training import TEXTS, run_training
from studio.errors import UsageError, nearest

__all__ = ["TASKS", "TuneTask", "tune"]


@dataclass(frozen=True)
class TuneTask:
    """A task as the command line has it.

    Args:
        name: its name, that of a task in ``studio.trainers.TEXT_TASKS``.
        summary: a line of what it teaches.
        help: what it does, and which forms DATA has.
        examples: commands to copy.
    """

    name: str
    summary: str
    help: str
    examples: tuple[str, ...]


TASKS: Final = (
    TuneTask(
        "causal-lm",
        "Answers to questions, conversations, or plain text.",
        """Teach a causal language model to answer as the samples do.

        BASE is an embedded language base (facts), a transformers folder or a hub id, DATA a JSONL file with one sample
        per line: messages; instruction and output; prompt and completion; or text. The answers are learned, each with
        its end; the questions are only read. The same command again goes on with an interrupted run, to the bit.""",
        (
            "studio tune causal-lm facts questions.jsonl --held-out 0.1 -o runs/facts",
            "studio tune causal-lm model/ chats.jsonl --method dora --rank 16 --steps 1000 --max-length 512 -o runs/x",
        ),
    ),
    TuneTask(
        "code",
        "What fills a hole in code, by the base's own marks.",
        """Teach a causal language model to fill holes in code (fill in the middle).

        BASE is a transformers folder or a hub id of a code model, whose marks for prefix, suffix and middle are taken;
        --set marks='["<PRE>", "<SUF>", "<MID>"]' gives some to another. DATA is a folder of code, or a file with
        one sample per line: prefix, middle and suffix; or code, in which --set holes=4 holes are made. The same command
        again goes on with an interrupted run, to the bit.""",
        ("studio tune code model/ src/ --held-out 0.1 -o runs/code",),
    ),
    TuneTask(
        "seq2seq",
        "Translations, summaries: a text that is said of another.",
        """Teach a sequence-to-sequence model (T5, BART, ...) to say of a text what the samples say.

        BASE is a transformers folder or a hub id, DATA a file with one sample per line: source and target; instruction,
        input and output; document and summary; or translation. The same command again goes on with an interrupted run,
        to the bit.""",
        ("studio tune seq2seq model/ pairs.jsonl --held-out 0.1 -o runs/pairs",),
    ),
    TuneTask(
        "caption",
        "What pictures show: captions, answers to questions about them.",
        """Teach a vision-language model (LLaVA, ...) what to say of pictures.

        BASE is an embedded one (figures), a transformers folder or a hub id, DATA a folder of pictures with a text
        beside each (cat.png, cat.txt) or in metadata.jsonl, or a file with one sample per line: image, a path, and
        text; image, question and answer; or image and messages. The text decoder is adapted, with --set vision=true
        the vision tower too. The same command again goes on with an interrupted run, to the bit.""",
        ("studio tune caption figures pictures/ --held-out 0.1 -o runs/pictures",),
    ),
    TuneTask(
        "speech",
        "Transcripts: what is said in sounds.",
        """Teach a speech recogniser of Whisper's family to write down what is said in sounds.

        BASE is an embedded one (speech), a transformers folder or a hub id, DATA a folder of sounds with a text beside
        each (hello.wav, hello.txt) or in metadata.jsonl, or a file with one sample per line: audio, a path, and text.
        Sounds of another rate are resampled. --set language=de says what is spoken to a base that knows several
        languages. The same command again goes on with an interrupted run, to the bit.""",
        ("studio tune speech speech clips/ --held-out 0.1 -o runs/clips",),
    ),
    TuneTask(
        "classify",
        "Labels of texts, of pairs of texts, or of words.",
        """Teach a model (BERT, Llama, T5, ...) to tell texts, pairs of texts or words apart by labels.

        BASE is an embedded language base, a transformers folder or a hub id, DATA a file with one sample per line: text
        and label; sentence1, sentence2 and label; premise, hypothesis and label; or tokens and tags. A head for the
        labels of the data is made where the base has none, trained, and saved with the adapter. The same command again
        goes on with an interrupted run, to the bit.""",
        (
            "studio tune classify facts messages.jsonl --held-out 0.1 -o runs/spam",
            "studio tune classify model/ entities.jsonl --held-out 0.1 --set balanced=true -o runs/entities",
        ),
    ),
    TuneTask(
        "embed",
        "Vectors of texts: those that belong together are near.",
        """Teach an encoder (BERT, Llama, ...) vectors by which texts that belong together are near each other.

        BASE is an embedded language base (facts), a transformers folder or a hub id, DATA a file with one sample per
        line: anchor and positive, maybe with a negative; query and positive; sentence1 and sentence2, maybe with a
        score; or source and target. The same command again goes on with an interrupted run, to the bit.""",
        ("studio tune embed facts pairs.jsonl --held-out 0.1 -o runs/near",),
    ),
    TuneTask(
        "preference",
        "Of two answers the better one: DPO, IPO, KTO, ORPO.",
        """Teach a causal language model to prefer the better ones of given answers.

        BASE is an embedded language base (facts), a transformers folder or a hub id, DATA a file with one sample per
        line: prompt, chosen and rejected; chosen and rejected, two conversations that begin alike; or, with --set
        loss=kto, prompt, completion and label. The reference is the base without the adapter. The same command again
        goes on with an interrupted run, to the bit.""",
        (
            "studio tune preference facts pairs.jsonl --held-out 0.1 -o runs/short",
            "studio tune preference facts verdicts.jsonl --held-out 0.1 --set loss=kto --set beta=0.1 -o runs/kto",
        ),
    ),
    TuneTask(
        "reward",
        "A number for an answer, from comparisons of two.",
        """Teach a model how good an answer is: the better one of two answers shall have the higher number.

        BASE is an embedded language base, a transformers folder or a hub id, DATA a file with one sample per line:
        prompt, chosen and rejected. A head for the number is made where the base has none, trained, and saved with the
        adapter. The same command again goes on with an interrupted run, to the bit.""",
        ("studio tune reward facts pairs.jsonl --held-out 0.1 -o runs/judge",),
    ),
    TuneTask(
        "grpo",
        "By a reward for what the model writes itself: GRPO.",
        """Teach a causal language model by rewards for the answers that it draws itself.

        BASE is an embedded language base (facts), a transformers folder or a hub id, DATA a file with one sample per
        line: prompt, messages or instruction, maybe with the right answer. The reward is one of exact, length:WORDS and
        regex:PATTERN, a Python function (MODULE:FUNCTION), or the file of a reward adapter on the same base. The same
        command again goes on with an interrupted run, to the bit.""",
        (
            "studio tune grpo facts questions.jsonl --held-out 0.1 --set reward=exact -o runs/right",
            "studio tune grpo facts questions.jsonl --set reward=runs/judge/adapter.safetensors -o runs/liked",
        ),
    ),
)
"""The tasks, in the order in which the help shows them."""


class Tasks(click.Group):
    """The tasks by name; one that is not there is refused with the nearest."""

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = arguments[0]
        if name not in self.commands and not name.startswith("-"):
            close = nearest(name, self.commands, 1)[0]
            known = ", ".join(self.commands)
            raise UsageError(f"studio tune has no task {name!r}; did you mean {close!r}? (tasks: {known})")
        return super().resolve_command(context, arguments)


@click.group(
    cls=Tasks,
    short_help="Teach a language model from samples.",
    epilog=example("studio tune causal-lm facts questions.jsonl --held-out 0.1 -o runs/facts"),
)
def tune() -> None:
    """Teach a language model from samples: studio tune TASK BASE DATA -o FOLDER."""


def _command(task: TuneTask) -> click.Command:
    @click.command(task.name, short_help=task.summary, help=task.help, epilog=example(*task.examples))
    @click.argument("base", required=False)
    @click.argument("data", required=False)
    @click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The run's folder.")
    @tuning_options
    @output_options
    @click.pass_context
    def command(context: click.Context, base: str | None, data: str | None, output: Path, **options: Any) -> None:
        from studio.trainers import TEXT_TASKS

        facts = {"base": base, "data": data}
        run_training(TEXT_TASKS[task.name], facts, context.ensure_object(dict), output, TEXTS, **options)

    return command


for _task in TASKS:
    tune.add_command(_command(_task))
