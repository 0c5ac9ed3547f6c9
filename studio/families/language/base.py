"""A language base: a model and its tokenizer, and what a training has to know about them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from studio.errors import DoesNotFit
from studio.families.base import modules_hash
from studio.families.language.kinds import KINDS, Kind
from studio.quantization.counting import hidden_numbers
from studio.quantization.parts import QuantizedPart

__all__ = ["PLAIN_TEMPLATE", "LanguageBase"]

PLAIN_TEMPLATE: Final = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""How conversations are written where a tokenizer has no chat template: ``User: ...``, ``Assistant: ...`` and the end
token, a line per turn."""


@dataclass(repr=False)
class LanguageBase:
    """A frozen language model with its tokenizer.

    Args:
        model: a transformers model.
        tokenizer: its tokenizer.
        id: the name in messages and in files: ``"facts"``, the folder's name, or the class of a model object.
        folder: where it was opened from; ``None`` for objects.
        quantized: what was quantised when it was opened.
        kind: what it was opened as.
        processor: what makes numbers of the sounds or pictures that it reads beside texts; ``None`` for texts alone.
        made: paths of the layers of a head that it had none of, and that was made.
    """

    model: Any
    tokenizer: Any
    id: str
    folder: Path | None = field(default=None)
    quantized: dict[str, QuantizedPart] = field(default_factory=dict, kw_only=True)
    kind: Kind = field(default=KINDS["causal-lm"], kw_only=True)
    processor: Any = field(default=None, kw_only=True)
    made: tuple[str, ...] = field(default=(), kw_only=True)
    _probed: dict[str, list[int]] = field(default_factory=dict, init=False)

    def __repr__(self) -> str:
        return f"<LanguageBase {self.id}: {type(self.model).__name__}>"

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) over the weights, computed once; ask before anything is baked."""
        return modules_hash({"": self.model})

    @cached_property
    def tokenizer_hash(self) -> str:
        """SHA-256 (hex) over what turns text into numbers; how it pads and what its chat template says do not count."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:  # a tokenizer written in Python
            content: Any = [self.tokenizer.get_vocab(), self.tokenizer.get_added_vocab(), type(self.tokenizer).__name__]
        else:
            content = json.loads(backend.to_str())
            content = {name: part for name, part in content.items() if name not in ("padding", "truncation")}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def template(self) -> str:
        """The chat template: the tokenizer's, else :data:`PLAIN_TEMPLATE`."""
        return str(self.tokenizer.chat_template or PLAIN_TEMPLATE)

    @property
    def template_hash(self) -> str:
        """SHA-256 (hex) of the chat template."""
        return hashlib.sha256(self.template.encode()).hexdigest()

    def write(self, messages: Sequence[Mapping[str, str]], *, asking: bool = False) -> str:
        """Writes a conversation as one text.

        Args:
            messages: turns with a role and a content.
            asking: end with what comes before an answer.

        Raises:
            DoesNotFit: a turn holds one of the tokenizer's own marks, or the chat template refuses the conversation.
        """
        for message in messages:
            mark = next((mark for mark in self.tokenizer.all_special_tokens if mark in message["content"]), None)
            if mark is not None:
                raise DoesNotFit(
                    f"the {message['role']}'s turn holds {mark!r}, which the tokenizer reads as one of its own marks; "
                    "take it out, or give the whole conversation as plain text"
                )
        try:
            text = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages], chat_template=self.template, tokenize=False,
                add_generation_prompt=asking,
            )  # fmt: skip
        except Exception as problem:  # a template raises jinja's errors or whatever it likes
            raise DoesNotFit(f"the chat template of {self.id} refuses the conversation: {problem}") from problem
        return str(text)

    def tokens(self, text: str, *, chat: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Returns the token numbers of a text and the characters ``(begin, end)`` that each stands for.

        The beginning token of tokenizers that put one stands in front exactly once, whether the text, or its chat
        template, writes it or not. No end token is added.

        Args:
            text: what :meth:`write` wrote, or plain text.
            chat: whether a chat template wrote it; both are numbered in the same way.
        """
        coded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        numbers, places = list(coded["input_ids"]), [(int(begin), int(end)) for begin, end in coded["offset_mapping"]]
        first = list(self.beginning)
        if numbers[: len(first)] == first:
            return numbers, places
        return first + numbers, [(0, 0)] * len(first) + places

    def reads(self, text: str) -> list[int]:
        """Returns the token numbers of a text that an encoder reads, with all marks that the tokenizer puts around it.

        Args:
            text: the text.
        """
        return list(self.tokenizer(text, verbose=False)["input_ids"])

    def says(self, text: str) -> list[int]:
        """Returns the token numbers of a text that a decoder of its own is to say, with the end behind it.

        Args:
            text: the text.
        """
        coded = list(self.tokenizer(text_target=text, verbose=False)["input_ids"])
        return coded if coded and coded[-1] in self.ends else [*coded, *self.ends[:1]]

    @cached_property
    def beginning(self) -> tuple[int, ...]:
        """The tokens that the tokenizer puts in front of every text."""
        bare = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        whole = self.tokenizer("a", add_special_tokens=True)["input_ids"]
        size = next((n for n in range(len(whole)) if whole[n : n + len(bare)] == bare), 0)
        return tuple(whole[:size])

    def begins(self, text: str) -> str:
        """Returns what :meth:`tokens` puts in front of a text, as text; "" where it begins so already."""
        first = list(self.beginning)
        numbers = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return "" if numbers[: len(first)] == first else str(self.tokenizer.decode(first))

    @property
    def context(self) -> int:
        """How many tokens the model reads at most."""
        config: Any = self.model.config.get_text_config()
        named = (
            getattr(config, name, 0) for name in ("max_position_embeddings", "max_target_positions", "n_positions")
        )
        return int(next((size for size in named if size), 0) or self.tokenizer.model_max_length) - self._positions_begin

    @cached_property
    def _positions_begin(self) -> int:
        """The rows of a table of positions that no token has: RoBERTa's kin count them behind that of the padding."""
        tables = (part for name, part in self.model.named_modules() if name.endswith("embeddings.position_embeddings"))
        padding = getattr(next(tables, None), "padding_idx", None)
        return 0 if padding is None else int(padding) + 1

    @property
    def pad(self) -> int:
        """The token that fills batches up; where the tokenizer has none, its end token, since masks go by place."""
        own = self.tokenizer.pad_token_id
        return int(own if own is not None else (self.ends[0] if self.ends else 0))

    def check_tokenizer(self) -> None:
        """Checks that the model has a row for every token of the tokenizer's own vocabulary.

        Marks that were added to it later may have none: some bases are published so, and no text holds them.

        Raises:
            DoesNotFit: it has not, so that the tokenizer is another model's.
        """
        rows, tokens = len(self.model.get_input_embeddings().weight), self.tokenizer.vocab_size
        if tokens > rows:
            raise DoesNotFit(
                f"the tokenizer of {self.id} has {tokens:,} tokens and the model knows {rows:,}: it is another "
                "model's; give the model's own"
            )

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of a classifier, in the order of its outputs; none of another kind."""
        names: Any = self.model.config.id2label if self.kind.head else {}
        return tuple(str(names[number]) for number in sorted(names))

    @property
    def parameters(self) -> int:
        """How many weights the base has."""
        return hidden_numbers(self.model) + sum(
            parameter.numel() for name, parameter in self.model.named_parameters() if ".adapters." not in f".{name}"
        )

    @property
    def ends(self) -> tuple[int, ...]:
        """The tokens that end an answer: the tokenizer's, those of the model's generation config, the template's."""
        named: Any = getattr(self.model.generation_config, "eos_token_id", None)
        named = [named] if isinstance(named, int) else list(named or ())
        first = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        return tuple(dict.fromkeys([*first, *named, *self._turn_ends()]))

    @property
    def end_marks(self) -> tuple[str, ...]:
        """The same as texts."""
        return tuple(str(self.tokenizer.decode([end])) for end in self.ends)

    def _turn_ends(self) -> list[int]:
        """The mark that the chat template writes right behind an answer, where that is one of the tokenizer's marks."""
        if self.template not in self._probed:
            messages = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
            try:
                behind = self.write(messages).rpartition("2")[2].lstrip()
            except DoesNotFit:  # a template that wants other conversations
                behind = ""
            marks = [mark for mark in self.tokenizer.all_special_tokens if behind.startswith(mark)]
            longest = max(marks, key=len, default=None)
            self._probed[self.template] = [] if longest is None else [self.tokenizer.convert_tokens_to_ids(longest)]
        return self._probed[self.template]
