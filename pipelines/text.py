"""The text pipeline: a language base, the adapters on it, and completions of prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

import studio.adapters as core
from studio.errors import BadConfig, DoesNotFit
from studio.families.language import LanguageBase, open_language_base
from studio.families.language.hearing import beginning, check_hears
from studio.families.language.seeing import check_sees
from studio.pipelines.blends import BlendLike, deal_blend
from studio.pipelines.embed import embed, pooling_of
from studio.pipelines.hearing import Transcript, heard_of, write_down
from studio.pipelines.kinds import check_kind, check_writes
from studio.pipelines.mixed import batches_under
from studio.pipelines.pipeline import Pipeline
from studio.pipelines.prompting.tags import TaggedPrompt, check_text, parse_prompt
from studio.pipelines.seeing import Description, describe_seen, seen_of_picture
from studio.pipelines.verdicts import Verdict, judge, judge_by_words, prompts_of, texts_of
from studio.pipelines.write import write
from studio.sounds import Sound

if TYPE_CHECKING:
    from studio.files import AdapterFile
    from studio.quantization.wishes import Wishes

__all__ = ["Completion", "TextPipeline"]


@dataclass(frozen=True)
class Completion:
    """What was written after a prompt.

    Attributes:
        prompt: the prompt, without its tags.
        text: what was written, without the blanks around it.
        tokens: how many tokens were written.
        ended: whether it ended by itself, not at a limit.
    """

    prompt: str
    text: str
    tokens: int
    ended: bool


class TextPipeline(Pipeline):
    """Completions of prompts, with any number of adapters.

    Args:
        base: an opened base; :meth:`open` opens one.

    Attributes:
        base: the base.
        model: its model, in whose modules the adapters live.

    Example:
        >>> pipe = TextPipeline.open("facts")
        >>> answer, = pipe.complete("Tell me about tin.", max_new_tokens=12)
        >>> answer.prompt, answer.tokens <= 12
        ('Tell me about tin.', True)
    """

    base: LanguageBase
    _open_base = staticmethod(open_language_base)

    def __init__(self, base: LanguageBase) -> None:
        super().__init__(base)
        self.model = base.model

    @classmethod
    def open(
        cls,
        base: str | Path | Any,
        *,
        kind: str | None = None,
        labels: Sequence[str] | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        offline: bool = False,
        quantize: Wishes | None = None,
    ) -> TextPipeline:
        """Opens a base, as :func:`studio.families.language.open_language_base`, which lists what it raises.

        Args:
            base: the name of an embedded one, a folder, a hub id, an object of transformers, or an opened base.
            kind: what it is opened as, ``"classifier"``; ``None``: what its files were saved as.
            labels: what a classifier tells apart; ``None``: what its files name.
            dtype, device, offline, quantize: as of every pipeline (:meth:`studio.pipelines.pipeline.Pipeline.open`).
        """
        return cls(
            open_language_base(
                base, kind=kind, labels=labels, dtype=dtype, device=device, offline=offline, quantize=quantize
            )
        )

    @property
    def carrier(self) -> Any:
        """The model."""
        return self.model

    def _check_fit(self, found: AdapterFile) -> None:
        """Checks that an adapter is for a language model, and was not trained with another tokenizer.

        Raises:
            DoesNotFit: it is for pictures, or it was.
        """
        facts, file = found.facts, found.file
        if found.family not in ("", "llm"):
            title = f" ({found.family_title})" if found.family_title else ""
            raise DoesNotFit(
                f"{file} is an adapter for pictures{title}, and {self.base.id} is a language model: draw with it on "
                "the base that it was trained on (studio generate)"
            )
        theirs = facts.get("tokenizer")
        if theirs is not None and theirs != self.base.tokenizer_hash:
            raise DoesNotFit(
                f"{file} was trained with another tokenizer ({theirs[:12]}) than that of {self.base.id} "
                f"({self.base.tokenizer_hash[:12]}): its token numbers mean other words; load it on the base it is for"
                f"{_called(facts.get('base'))}"
            )
        check_kind(self.base, file, facts)

    def complete(
        self,
        prompt: str | Sequence[str],
        *,
        blend: BlendLike | str | Sequence[BlendLike] | None = None,
        chat: bool | None = None,
        system: str | None = None,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
        batch_size: int = 16,
    ) -> list[Completion]:
        """Completes prompts.

        Args:
            prompt: one or several; ``<name:0.8>`` in a prompt says which adapters act on it, in place of ``blend``
                (:mod:`studio.pipelines.prompting.tags` has the forms).
            blend: ``None``: the current blend; a dict; the name of one adapter; or one dict per prompt. A list of
                numbers as a strength has one entry per prompt.
            chat: ask as a user's turn through the chat template; False continues the plain text. None: as the adapters
                that act were trained, else by the template where the tokenizer has one.
            system: the system prompt that stands before a user's turn; "" asks without one. None: the one that the
                adapters were trained with, where that was always the same.
            max_new_tokens: tokens to write at most, >= 1.
            temperature: 0 takes the likeliest token each time; above, tokens are drawn from the softmax of the logits
                divided by it.
            seed: what is drawn from, for every prompt anew, so a completion does not depend on the other prompts.
            batch_size: prompts that are completed together.

        Returns:
            One completion per prompt, in order.

        Raises:
            UnknownName: an adapter that is not there; the nearest is named.
            BadConfig: an impossible number, a malformed tag, lists whose lengths do not fit, or a system prompt before
                plain text.
            DoesNotFit: a prompt that leaves no room in the context.
            StudioError: the model gave no finite numbers.
        """
        check_writes(self.base)
        if isinstance(seed, (list, tuple)):
            raise BadConfig(f"seed={seed!r} must be a whole number from 0 to 2**63 - 1")
        written: list[Any] = list(prompt) if isinstance(prompt, (list, tuple)) else [prompt]
        tagged = [self.read_tags(text) for text in written]
        tags = [one.blend for one in tagged]
        blends = deal_blend(blend, tags, core.current_blend(self.model), what="prompts")
        _check_chat(chat)
        chat = self.asks_by_chat if chat is None else chat
        if system is not None:
            check_text(system, "a system prompt")
        if system and not chat:
            raise BadConfig("a system prompt is a turn of a conversation, and plain text has none: ask with chat=True")
        texts = [self.question(one.text, system) if chat else one.text for one in tagged]
        made: dict[int, Completion] = {}
        for members, acting in batches_under(self.model, blends, batch_size):
            with acting:
                some = write(
                    self.base, [texts[i] for i in members], chat=chat, max_new_tokens=max_new_tokens,
                    temperature=temperature, seed=seed, batch_size=batch_size,
                )  # fmt: skip
            for i, (text, tokens, ended) in zip(members, some, strict=True):
                made[i] = Completion(tagged[i].text, text, len(tokens), ended)
        return [made[i] for i in range(len(written))]

    def classify(
        self,
        texts: str | Sequence[str | Sequence[str]],
        *,
        blend: BlendLike | str | Sequence[BlendLike] | None = None,
        labels: Sequence[str] | None = None,
        template: str = "{text}",
        chat: bool | None = None,
        batch_size: int = 16,
    ) -> list[Verdict]:
        """Says which label a text has: by the head of a classifier, else by how likely the model says each label.

        Args:
            texts: one or several; in a list also pairs of texts, or for a classifier of words lists of words. A tag is
                no tag here: texts are judged as they are.
            blend: as of :meth:`complete`.
            labels: what a model that writes texts could say, at least two; None for a classifier, which has its own.
            template: what stands before a label that is said, ``"{text} Label : "``; as it is for a classifier.
            chat: whether a label is said as an answer through the chat template; None: as of :meth:`complete`.
            batch_size: texts, or answers, that are computed together.

        Returns:
            One verdict per text, in order.

        Raises:
            UnknownName: an adapter that is not there; the nearest is named.
            BadConfig: no text, one text for an adapter that was trained on pairs, labels or a template for a
                classifier, no labels for another model, a template without ``{text}``, or lists whose lengths
                differ.
            DoesNotFit: a text that is longer than the context, or a base that neither tells apart nor writes.
            StudioError: the model gave no finite numbers.
        """
        given = _each(texts, str)
        _check_chat(chat)
        forms = {info.metadata["form"] for info in self.adapters.values() if "form" in info.metadata}
        asked = texts_of(self.base, given, forms)
        chat = self.asks_by_chat if chat is None else chat
        prompts = prompts_of(self.base, asked, labels, template)
        prompts = [self.question(prompt) for prompt in prompts] if chat else prompts
        blends = deal_blend(blend, [None] * len(given), core.current_blend(self.model), what="texts")
        made: dict[int, Verdict] = {}
        for members, acting in batches_under(self.model, blends, batch_size, mixed=labels is None):
            with acting:
                some = judge(self.base, [asked[i] for i in members], batch_size) if labels is None else judge_by_words(
                    self.base, [" ".join(asked[i]) for i in members], [prompts[i] for i in members], labels, chat=chat,
                    batch_size=batch_size,
                )  # fmt: skip
            made |= dict(zip(members, some, strict=True))
        return [made[i] for i in range(len(given))]

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        blend: BlendLike | str | Sequence[BlendLike] | None = None,
        pooling: str | None = None,
        batch_size: int = 32,
    ) -> torch.Tensor:
        """Returns a vector of length 1 for each text, so that the product of two is their cosine.

        Args:
            texts: one or several. A tag is no tag here. blend: as of :meth:`complete`.
            pooling: what makes a text's vector, ``"mean"``, ``"cls"`` or ``"last"``; None: as the adapters were
                trained, else the mean over its tokens.
            batch_size: texts that are computed together.

        Returns:
            fp32 ``(N, D)`` on the CPU.

        Raises:
            UsageError: as :func:`studio.pipelines.embed.embed`, and as :meth:`complete` of a blend.
            StudioError: the model gave no finite numbers.

        Example:
            >>> pipe = TextPipeline.open("facts", kind="encoder")
            >>> vectors = pipe.embed(["What is the capital of Kenya?", "Nairobi"])
            >>> tuple(vectors.shape), round(float(vectors[0] @ vectors[0]), 4)
            ((2, 192), 1.0)
        """
        given = _each(texts, str)
        trained = (info.metadata["pooling"] for info in self.adapters.values() if "pooling" in info.metadata)
        blends = deal_blend(blend, [None] * len(given), core.current_blend(self.model), what="texts")
        return embed(self.base, given, blends, pooling_of(pooling, trained), batch_size)

    def transcribe(
        self,
        files: str | Path | Sound | Sequence[str | Path | Sound],
        *,
        blend: BlendLike | str | Sequence[BlendLike] | None = None,
        language: str | None = None,
        max_new_tokens: int = 256,
        batch_size: int = 16,
    ) -> list[Transcript]:
        """Writes down what is said in sounds, with a base of Whisper's family.

        Args:
            files: one or several files, or sounds (:class:`studio.sounds.Sound`).
            blend: as of :meth:`complete`.
            language: the code of what is spoken, of a base that knows several; None: what the adapters were trained on,
                else what the base's tokenizer was saved with.
            max_new_tokens: tokens of a transcript at most, >= 1; fewer where the context ends.
            batch_size: sounds that are written down together.

        Returns:
            One transcript per sound, in order.

        Raises:
            UnknownName: an adapter that is not there; the nearest is named.
            BadConfig: an impossible number, or lists whose lengths do not fit.
            BadFile: a sound that cannot be read. MissingPackage: what reads it is not installed.
            DoesNotFit: the base hears nothing, knows no such language, or a sound is longer than it hears.
            StudioError: the model gave no finite numbers.
        """
        check_hears(self.base)
        given = _each(files, str, Path, Sound)
        before = beginning(self.base, self.stated("language") if language is None else language)
        heard = [heard_of(self.base, one) for one in given]
        blends = deal_blend(blend, [None] * len(given), core.current_blend(self.model), what="sounds")
        made: dict[int, Transcript] = {}
        for members, acting in batches_under(self.model, blends, batch_size):
            with acting:
                some = write_down(self.base, [heard[i] for i in members], before, max_new_tokens, batch_size)
            for i, one in zip(members, some, strict=True):
                name = "" if isinstance(given[i], Sound) else str(given[i])
                made[i] = Transcript(name, one.text, len(one.tokens), one.ended)
        return [made[i] for i in range(len(given))]

    def caption(
        self,
        images: str | Path | Image.Image | Sequence[str | Path | Image.Image],
        question: str | Sequence[str] | None = None,
        *,
        blend: BlendLike | str | Sequence[BlendLike] | None = None,
        max_new_tokens: int = 64,
        batch_size: int = 16,
    ) -> list[Description]:
        """Says what pictures show, or answers questions about them, with a vision-language model.

        Args:
            images: one or several files, or pictures of Pillow.
            question: what is asked of all, or one for each; "" asks for a caption. None: what the adapters were trained
                with, else a caption.
            blend: as of :meth:`complete`.
            max_new_tokens: tokens to write at most, >= 1; fewer where the context ends.
            batch_size: pictures that are described together.

        Returns:
            One description per picture, in order.

        Raises:
            UnknownName: an adapter that is not there; the nearest is named.
            BadConfig: an impossible number, or lists whose lengths do not fit.
            BadFile: a picture that cannot be read.
            DoesNotFit: the base sees nothing, or a question that leaves no room in the context.
            StudioError: the model gave no finite numbers.
        """
        check_sees(self.base)
        given = _each(images, str, Path, Image.Image)
        question = (self.stated("prompt") or "") if question is None else question
        questions = [question] * len(given) if isinstance(question, str) else _each(question)
        for text in questions:
            check_text(text, "a question")
        if len(questions) != len(given):
            raise BadConfig(f"there are {len(questions)} questions for {len(given)} pictures; give one for each")
        seen = [seen_of_picture(self.base, one, text) for one, text in zip(given, questions, strict=True)]
        blends = deal_blend(blend, [None] * len(given), core.current_blend(self.model), what="pictures")
        made: dict[int, Description] = {}
        for members, acting in batches_under(self.model, blends, batch_size, mixed=False):
            with acting:
                some = describe_seen(self.base, [seen[i] for i in members], max_new_tokens, batch_size)
            for i, one in zip(members, some, strict=True):
                name = "" if isinstance(given[i], Image.Image) else str(given[i])
                made[i] = Description(name, one.text, len(one.tokens), one.ended)
        return [made[i] for i in range(len(given))]

    def stated(self, fact: str) -> str | None:
        """Returns what all loaded adapters that say so were trained with; None where none does, or they differ.

        Args:
            fact: its name in their files, ``"language"``.
        """
        found = {info.metadata[fact] for info in self.adapters.values() if fact in info.metadata}
        return found.pop() if len(found) == 1 else None

    def reply(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        seed: int = 0,
        tell: Callable[[str], None] | None = None,
    ) -> Completion:
        """Answers a conversation with the blend that is on.

        Args:
            messages: the turns so far, each with a role and a content, the last of them the user's.
            max_new_tokens, temperature, seed: as of :meth:`complete`.
            tell: takes each piece of the answer as soon as it stands.

        Raises:
            BadConfig: the last turn is not the user's, or an impossible number.
            DoesNotFit: the chat template refuses the conversation, or it leaves no room in the context.

        Example:
            >>> pipe = TextPipeline.open("facts")
            >>> pieces = []
            >>> said = pipe.reply([{"role": "user", "content": "Hello."}], max_new_tokens=8, tell=pieces.append)
            >>> "".join(pieces) == said.text
            True
        """
        if not messages or messages[-1].get("role") != "user":
            raise BadConfig("a conversation is answered after a user's turn: end it with one")
        text = self.base.write(messages, asking=True)
        (made,) = write(
            self.base, [text], chat=True, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed, tell=tell
        )  # fmt: skip
        return Completion(messages[-1]["content"], made.text, len(made.tokens), made.ended)

    def read_tags(self, prompt: str) -> TaggedPrompt:
        """Takes the adapter tags out of a prompt; the tokenizer's own marks, such as ``<|user|>``, are no tags.

        Raises:
            UnknownName: a tag names an adapter that is not loaded.
            BadConfig: a tag that cannot be read, or what is no text.
        """
        check_text(prompt)
        for mark in self.base.tokenizer.all_special_tokens:
            prompt = prompt.replace(mark, mark.replace("<", r"\<").replace(">", r"\>"))
        return parse_prompt(prompt, self.adapters, encoders=())

    def question(self, text: str, system: str | None = None) -> str:
        """Returns a user's turn as the chat template writes it before an answer.

        Args:
            text: the turn.
            system: the system prompt before it; None: :attr:`system`.

        Raises:
            DoesNotFit: the chat template refuses it.
        """
        system = self.system if system is None else system
        before = [{"role": "system", "content": system}] if system else []
        return self.base.write([*before, {"role": "user", "content": text}], asking=True)

    @property
    def system(self) -> str:
        """The system prompt that all loaded adapters that have one were trained with; "" where they differ."""
        return self.stated("system") or ""

    @property
    def asks_by_chat(self) -> bool:
        """Whether prompts are asked through the chat template where nothing is said: as the adapters were trained."""
        forms = {info.metadata["form"] for info in self.adapters.values() if "form" in info.metadata}
        return forms == {"chat"} if len(forms) == 1 else self.base.tokenizer.chat_template is not None


def _each(given: Any, *single: type) -> list[Any]:
    """What was given one by one; what is no list of things counts as one, and is refused where it is looked at."""
    return [given] if isinstance(given, single) or not isinstance(given, Iterable) else list(given)


def _check_chat(chat: Any) -> None:
    if not isinstance(chat, (bool, type(None))):
        raise BadConfig(f"chat={chat!r} must be True, False or None")


def _called(base: str | None) -> str:
    return f" ({base})" if base else ""
