"""The words that an adapter answers to, and the texts that its samples are trained with.

This is decided here and nowhere else: trainings, their previews, what the adapter's file says, ``studio check`` and
``studio generate`` ask a :class:`Trigger`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from studio.datasets.folder import ImageItem

__all__ = ["Trigger", "class_prompt_of", "missing_words", "rare_word", "subject_words"]

LEAD: Final = re.compile(
    r"^(?:an?|the)?\s*(?:photo|photograph|picture|image|emoji|drawing|painting|portrait)\s+of\s+", re.I
)
COMMON_WORDS: Final = frozenset(
    "a an the this that my of in on at with and or photo photograph picture image painting drawing rendering render "
    "illustration sketch portrait close-up closeup good bad nice cropped bright dark style by is".split()
)
SHOWN: Final = 2  # captions that previews of a style show


@dataclass(frozen=True)
class Trigger:
    """What an adapter answers to; :meth:`of_subject` and :meth:`of_style` make one.

    Args:
        words: the words that call up what is learned.
        alone: what a picture without a caption is called.
        joint: what stands between that and a caption.
        phrase: whether a caption must have the words as one phrase; else each of them, wherever it stands.
        folders: whether the words of a folder named like ``10_sks dog`` are captions.
    """

    words: str
    alone: str
    joint: str = ", "
    phrase: bool = False
    folders: bool = False

    @classmethod
    def of_subject(cls, instance_prompt: str) -> Trigger:
        """Returns the trigger of a subject: its instance prompt without "a photo of".

        The words of a folder stand in for a prompt, and here there is one.

        Example:
            >>> Trigger.of_subject("a photo of sks dog").words
            'sks dog'
        """
        return cls(LEAD.sub("", instance_prompt.strip()), instance_prompt)

    @classmethod
    def of_style(cls, phrase: str, joint: str = ", ") -> Trigger:
        """Returns the trigger of a style: the phrase itself.

        Example:
            >>> Trigger.of_style("ink style").text("a cat")
            'ink style, a cat'
        """
        words = phrase.strip()
        return cls(words, words, joint, phrase=True, folders=True)

    def caption(self, item: ImageItem) -> str | None:
        """Returns the caption of a picture that counts; None where it has none."""
        return item.caption if self.folders or item.caption_from != "folder" else None

    def of(self, item: ImageItem) -> str:
        """Returns the text that a picture is trained with."""
        return self.text(self.caption(item))

    def text(self, caption: str | None) -> str:
        """Returns the text that a picture with this caption is trained with: the trigger is in it.

        Example:
            >>> trigger = Trigger.of_subject("a photo of sks dog")
            >>> trigger.text("a dog in the snow"), trigger.text("SKS dog, wet")
            ('a photo of sks dog, a dog in the snow', 'SKS dog, wet')
        """
        if not caption:
            return self.alone
        return caption if self.stands_in(caption) else f"{self.alone}{self.joint}{caption}"

    def stands_in(self, caption: str) -> bool:
        """Whether a caption has the trigger already, so that nothing is put in front of it.

        Only commas part words here, unlike in :func:`missing_words`: another rule would train other texts, and runs
        that were begun with this one could not go on.
        """
        if self.phrase:
            return self.words.lower() in caption.lower()
        words = caption.lower().replace(",", " ").split()
        return all(word in words for word in self.words.lower().split())

    def previews(self, captions: Sequence[str]) -> tuple[str, ...]:
        """Returns the prompts of previews where none are given: of a style the first captions, else what it is called.

        Args:
            captions: the texts that the pictures are trained with.
        """
        return tuple(dict.fromkeys(captions))[:SHOWN] if self.phrase else (self.alone,)


def missing_words(words: str, prompt: str) -> list[str]:
    """Returns the words of a trigger that a prompt does not say, so that it would show the base.

    Example:
        >>> missing_words("sks dog", "a Dog, on the beach"), missing_words("sks dog", "sks, dog.")
        (['sks'], [])
    """
    said = re.findall(r"[^\s,.;:<>]+", prompt.lower())
    return [word for word in words.lower().split() if word.strip(",.;:") not in said]


def class_prompt_of(instance_prompt: str) -> str | None:
    """Returns the class prompt that follows from an instance prompt, by the custom that the rare word comes first.

    Example:
        >>> class_prompt_of("a photo of sks dog"), class_prompt_of("a photo of dog")
        ('a photo of dog', None)
    """
    prompt, words = instance_prompt.strip(), Trigger.of_subject(instance_prompt).words
    name = words.split()[1:]
    return prompt[: len(prompt) - len(words)] + " ".join(name) if name else None


def subject_words(prompt: str) -> list[str]:
    """Returns the words of a prompt that do not describe the kind of picture.

    Example:
        >>> subject_words("a photo of sks dog")
        ['sks', 'dog']
    """
    words = (word.strip(".,;:!?\"'()[]") for word in prompt.split())
    return [word for word in words if word and word.lower() not in COMMON_WORDS]


def rare_word(prompt: str) -> str | None:
    """Returns the word of an instance prompt that stands for the subject, or None.

    By the convention of DreamBooth it is the first word that does not describe the kind of picture, and another word,
    the class, follows it.

    Example:
        >>> rare_word("a photo of sks dog")
        'sks'
        >>> rare_word("a photo of dog") is None
        True
    """
    words = subject_words(prompt)
    return words[0] if len(words) > 1 else None
