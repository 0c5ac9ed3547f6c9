"""The kinds of language bases: what a model is opened as, which is what its task needs of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from studio.errors import BadConfig, DoesNotFit
from studio.given import is_blank
from studio.registry import Registry

__all__ = ["KINDS", "Kind", "model_kind", "read_labels", "usual_kind"]


@dataclass(frozen=True)
class Kind:
    """A kind of language base.

    Args:
        name: its name.
        title: what messages call it, "causal language model".
        auto: the class of transformers that opens one.
        tables: the tables in transformers' ``modeling_auto`` of the model types that it knows.
        processor: whether sounds or pictures are read beside texts, by a processor that comes with the model.
        head: whether a head maps states to labels, which a plain model lacks and which is then made.
    """

    name: str
    title: str
    auto: str
    tables: tuple[str, ...]
    processor: bool = False
    head: bool = False

    @property
    def one(self) -> str:
        """Its title with the article, "an encoder of texts"."""
        return f"{'an' if self.title[0] in 'aeiou' else 'a'} {self.title}"

    def classes(self, model_type: str) -> tuple[str, ...]:
        """Returns transformers' classes of this kind for a model type, ``"llama"``; none where it has none."""
        from transformers.models.auto import modeling_auto

        found = [getattr(modeling_auto, table).get(model_type) for table in self.tables]
        return tuple(name for name in found if isinstance(name, str))

    def knows(self, model_type: str) -> bool:
        """Whether transformers has a model of this kind for a model type."""
        return bool(self.classes(model_type))

    def check_knows(self, model_type: str, name: str) -> None:
        """Checks that transformers has a model of this kind for a model type.

        Args:
            model_type: the type. name: what messages call the model.

        Raises:
            DoesNotFit: it has none.
        """
        if not self.knows(model_type):
            others = [other.one for other in KINDS.values() if other.knows(model_type)]
            hint = f"; it can be opened as {' or '.join(others)}" if others else ""
            raise DoesNotFit(f"{name} is a {model_type!r}, which transformers has no {self.title} of{hint}")


KINDS: Final[Registry[Kind]] = Registry("kind of language base")
"""Kind of language base -> what it is."""

for _kind in (
    Kind("causal-lm", "causal language model", "AutoModelForCausalLM", ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",)),
    Kind(
        "seq2seq", "sequence-to-sequence model", "AutoModelForSeq2SeqLM",
        ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",),
    ),
    Kind(
        "classifier", "classifier of texts", "AutoModelForSequenceClassification",
        ("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",), head=True,
    ),
    Kind(
        "token-classifier", "classifier of words", "AutoModelForTokenClassification",
        ("MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",), head=True,
    ),
    Kind("encoder", "encoder of texts", "AutoModel", ("MODEL_MAPPING_NAMES",)),
    Kind(
        "speech", "speech recogniser", "AutoModelForSpeechSeq2Seq", ("MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",),
        processor=True,
    ),
    Kind(
        "vision", "vision-language model", "AutoModelForImageTextToText",
        ("MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",), processor=True,
    ),
):  # fmt: skip
    KINDS.add(_kind.name, _kind)


def usual_kind(config: Mapping[str, Any]) -> Kind:
    """Returns what a model is opened as where nothing is said: what its files were saved as.

    Args:
        config: its ``config.json``.

    Example:
        >>> usual_kind({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}).name
        'seq2seq'
        >>> usual_kind({"model_type": "qwen2"}).name
        'causal-lm'
    """
    model_type, saved = str(config["model_type"]), list(config.get("architectures") or ())
    fitting = [kind for kind in KINDS.values() if saved[:1] and saved[0] in kind.classes(model_type)]
    return (fitting or [KINDS["causal-lm"]])[0]


def model_kind(model: Any, asked: Kind | None) -> Kind:
    """Returns what the object of a model is: what is asked for, else what its class says.

    Args:
        model: a model of transformers. asked: what is asked for.

    Raises:
        DoesNotFit: its class is one of another kind; a class that transformers does not name may be anything.
    """
    name, model_type = type(model).__name__, str(model.config.model_type)
    usual = usual_kind({"model_type": model_type, "architectures": [name]})
    if asked is None or name in asked.classes(model_type):
        return asked or usual
    if name in usual.classes(model_type):
        raise DoesNotFit(f"{name} is {usual.one}, and {asked.one} is asked for")
    return asked


def read_labels(kind: Kind, labels: Any) -> tuple[str, ...] | None:
    """Returns the labels that a base of a kind shall tell apart; None where none are asked for.

    Args:
        kind: the kind. labels: what was given.

    Raises:
        BadConfig: they are no texts, or not all different; or a base of that kind has no head.
    """
    if labels is None:
        return None
    found = tuple(labels) if isinstance(labels, Sequence) and not isinstance(labels, (str, bytes)) else ()
    if not found or not all(isinstance(label, str) and not is_blank(label) for label in found):
        raise BadConfig(f"labels={labels!r}: give a list of texts that are not empty")
    if len(set(found)) != len(found):
        raise BadConfig(f"labels={labels!r}: give labels that are all different")
    if not kind.head:
        raise BadConfig(
            f"labels={labels!r}: {kind.one} has no head for labels; leave them out, or say kind='classifier'"
        )
    return found
