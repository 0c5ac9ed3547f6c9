"""Opening a causal language base: a model and its tokenizer, by name, from a transformers folder or the hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch

from studio.errors import BadFile, DoesNotFit, UnknownName, UsageError, nearest
from studio.families.base import BASES, modules_hash, move
from studio.families.opening import hub
from studio.families.opening.dtype import named, usual_dtype
from studio.families.opening.folder import chosen
from studio.families.opening.ids import hub_id, standing
from studio.families.opening.selection import language_files
from studio.families.opening.weights import header_of, held
from studio.families.quiet import quietly
from studio.quantization.counting import hidden_numbers
from studio.quantization.parts import QuantizedPart, by_component, quantize_part
from studio.quantization.wishes import Wishes, read_wishes

__all__ = ["LANGUAGE_BASES", "PLAIN_TEMPLATE", "LanguageBase", "facts_file", "open_language_base"]

LANGUAGE_BASES: Final[dict[str, Path]] = {"facts": Path(__file__).parent / "facts" / "model"}
"""The embedded language bases: name -> transformers folder inside the package."""

PLAIN_TEMPLATE: Final = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""How conversations are written where a tokenizer has no chat template: ``User: ...``, ``Assistant: ...`` and the end
token, a line per turn."""


@dataclass(repr=False)
class LanguageBase:
    """A frozen causal language model with its tokenizer.

    Args:
        model: a transformers model with a language head.
        tokenizer: its tokenizer.
        id: the name in messages and in files: ``"facts"``, the folder's name, or the class of a model object.
        folder: where it was opened from; ``None`` for objects.
        quantized: what was quantised when it was opened.
    """

    model: Any
    tokenizer: Any
    id: str
    folder: Path | None = field(default=None)
    quantized: dict[str, QuantizedPart] = field(default_factory=dict, kw_only=True)
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
        return int(getattr(self.model.config, "max_position_embeddings", 0) or self.tokenizer.model_max_length)

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


def open_language_base(
    base: str | Path | Any,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    offline: bool = False,
    quantize: Wishes | None = None,
) -> LanguageBase:
    """Opens a causal language base.

    Args:
        base: the name of an embedded base (``"facts"``), a transformers folder, a hub id (``"owner/name"``,
            ``"owner/name@revision"``, with a folder of the repository behind it), a pair of a model and its tokenizer,
            or a :class:`LanguageBase`, which is returned as it is (moved if ``dtype`` or ``device`` say so). A path
            that exists is never asked of the hub, and the hub only for what its cache on this machine does not have.
        dtype: the weights' type, or its name (``"bf16"``); ``None``: what most of them are in the files, but fp32 for a
            small base on a CPU, unchanged for objects; ``"auto"``: the same, but what the device computes fastest in
            where the files hold fp32.
        device: where to; ``None``: the CPU for what is read from disk, unchanged for objects.
        offline: never ask the hub; ``HF_HUB_OFFLINE=1`` says so too.
        quantize: how the model is kept in fewer bits, such as ``"nf4"`` (:data:`studio.quantization.BACKENDS`): layer
            by layer, in place and for good; ``None``: as it is.

    Returns:
        The base, its model in evaluation mode.

    Raises:
        UnknownName: neither a known name nor a folder nor an id that the hub has, or no such way to quantise.
        MissingPackage: what quantises is not installed.
        BadFile: what is there is not a whole transformers model with its tokenizer, or the hub does not give it.
        DoesNotFit: it is no causal language model, or cannot be quantised.

    Example:
        >>> open_language_base("fact")
        Traceback (most recent call last):
        ...
        studio.errors.UnknownName: no language base or folder is called 'fact'; did you mean 'facts'? (embedded language
        bases: facts)
    """
    dtype, wishes = named(dtype), read_wishes(quantize)
    if isinstance(base, (str, Path)):
        return _read(base, dtype, device, offline, wishes)
    if isinstance(base, LanguageBase):
        found = base
    elif isinstance(base, Sequence) and len(base) == 2:
        found = LanguageBase(base[0], base[1], type(base[0]).__name__)
    else:
        raise DoesNotFit(
            f"a language base is a name, a transformers folder or a pair of a model and its tokenizer, not a "
            f"{type(base).__name__}"
        )
    move(found.model, dtype if isinstance(dtype, torch.dtype) else None, device)
    return _quantize(found, wishes)


def _quantize(base: LanguageBase, wishes: Mapping[str, str]) -> LanguageBase:
    """Quantises what is asked for; the base keeps the hash of what it was."""
    for name in by_component(wishes, ("",), "").values():
        _ = base.hash
        base.quantized[""] = quantize_part(base.id, base.model, name)
    return base


def facts_file(name: str) -> Path:
    """Returns one of the question files that come with the base ``facts``: ``"train.jsonl"``, ``"held-out.jsonl"``."""
    return LANGUAGE_BASES["facts"].parent / name


def _read(
    base: str | Path, dtype: torch.dtype | str | None, device: torch.device | str | None, offline: bool,
    wishes: Mapping[str, str],
) -> LanguageBase:  # fmt: skip
    name, folder = _place(base, offline)
    model_type = _model_type(folder)
    files = chosen(folder, language_files)
    counts = held(header_of(folder / file) for file in files if file.endswith(".safetensors"))
    tokenizer = _read_tokenizer(folder)
    kind = usual_dtype(counts, torch.device("cpu" if device is None else device), dtype)
    model = _read_model(folder, model_type, kind)
    if not tokenizer.is_fast:
        raise DoesNotFit(f"the tokenizer of {folder} cannot say which characters a token is of; save it as a fast one")
    found = _quantize(LanguageBase(model.eval(), tokenizer, name, folder), wishes)
    move(model, None, device)
    return found


def _place(base: str | Path, offline: bool) -> tuple[str, Path]:
    """Returns what a base is called, and the folder that was named."""
    if isinstance(base, str) and base in LANGUAGE_BASES:
        return base, LANGUAGE_BASES[base]
    folder = standing(base)
    if folder is not None and folder.is_dir():
        return folder.resolve().name, folder
    asked = hub_id(base) if isinstance(base, str) and folder is None else None
    if asked is None or asked.is_file:
        raise _no_folder(base, folder)
    return str(asked), hub.fetch(asked, language_files, away=offline)


def _no_folder(base: str | Path, folder: Path | None) -> UsageError:
    """The refusal of what is neither a known name nor a folder."""
    if base in BASES:
        return DoesNotFit(f"{base!r} draws pictures; a language base is asked for ({', '.join(LANGUAGE_BASES)})")
    if folder is not None and folder.is_file():
        return BadFile(f"{folder} is a single file; language bases are read from transformers folders")
    close = nearest(str(base), LANGUAGE_BASES, 1)[0]
    return UnknownName(
        f"no language base or folder is called {str(base)!r}; did you mean {close!r}? (embedded language bases: "
        f"{', '.join(LANGUAGE_BASES)})"
    )


def _read_tokenizer(folder: Path) -> Any:
    import transformers

    try:
        with quietly():
            return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as problem:  # whatever a broken or missing tokenizer makes transformers raise
        raise BadFile(f"{folder} has no tokenizer that can be opened: {_sentence(problem)}") from problem


def _read_model(folder: Path, model_type: str, dtype: torch.dtype) -> Any:
    import transformers

    try:
        with quietly():
            model, told = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, local_files_only=True, output_loading_info=True
            )
    except Exception as problem:
        raise BadFile(f"{folder} cannot be opened as a {model_type} language model: {_sentence(problem)}") from problem
    if told["missing_keys"]:  # transformers would go on with random numbers
        some = ", ".join(sorted(told["missing_keys"])[:3])
        raise BadFile(f"{folder} lacks {len(told['missing_keys'])} of the model's tensors ({some}); copy it again")
    return model


def _model_type(folder: Path) -> str:
    """Returns the model type that ``config.json`` states, after a check that it is a causal language model's."""
    if (folder / "model_index.json").is_file():
        raise DoesNotFit(f"{folder} is a diffusers pipeline, which draws pictures; a language base is asked for")
    config = folder / "config.json"
    if not config.is_file():
        found = ", ".join(sorted(file.name for file in folder.iterdir())[:5]) or "nothing"
        raise BadFile(f"{folder} is no transformers model: it has no config.json (it holds {found})")
    try:
        model_type = str(json.loads(config.read_text(encoding="utf-8"))["model_type"])
    except (ValueError, KeyError, TypeError) as problem:
        raise BadFile(f"{config} cannot be read as a transformers config ({problem!r}); copy it again") from None
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise DoesNotFit(f"{folder} is a {model_type!r}, which transformers has no causal language model of")
    return model_type


def _sentence(problem: Exception) -> str:
    text = str(problem).strip()
    return text.splitlines()[0] if text else repr(problem)
