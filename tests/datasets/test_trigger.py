"""The words that an adapter answers to, and the texts that its samples are trained with."""

from __future__ import annotations

import pytest

from studio.datasets.trigger import Trigger, class_prompt_of, missing_words


@pytest.mark.parametrize(
    ("prompt", "words", "class_prompt"),
    [
        ("a photo of sks dog", "sks dog", "a photo of dog"),
        (" An Emoji of  zwx teddy bear ", "zwx teddy bear", "An Emoji of  teddy bear"),
        ("sks dog", "sks dog", "dog"),
        ("a photo of dog", "dog", None),
    ],
)
def test_a_subject_is_called_by_its_prompt_without_its_lead(prompt, words, class_prompt):
    trigger = Trigger.of_subject(prompt)
    assert trigger.words == words and class_prompt_of(prompt) == class_prompt
    assert trigger.text(None) == trigger.text("") == prompt
    assert trigger.previews(["x", "y"]) == (prompt,)


@pytest.mark.parametrize(
    ("caption", "trained"),
    [
        ("a dog", "a photo of sks dog, a dog"),
        ("DOG of Sks, wet", "DOG of Sks, wet"),
        ("sks dog.", "a photo of sks dog, sks dog."),  # runs that were begun with this rule go on with it
        ("sksdog", "a photo of sks dog, sksdog"),
    ],
)
def test_a_caption_without_a_word_of_the_subject_gets_the_prompt_in_front(caption, trained):
    assert Trigger.of_subject("a photo of sks dog").text(caption) == trained


def test_a_style_is_a_phrase_in_front_of_every_caption():
    trigger = Trigger.of_style(" ink style ", " · ")
    assert trigger.words == trigger.text(None) == "ink style"
    captions = [trigger.text(caption) for caption in ("a cat", "a dog in INK STYLE", "style ink")]
    assert captions == ["ink style · a cat", "a dog in INK STYLE", "ink style · style ink"]
    assert trigger.previews([captions[0], *captions]) == tuple(captions[:2])


def test_a_prompt_says_the_words_whatever_stands_around_them():
    assert missing_words("sks dog", "<ink:0.5> dog; SKS.") == []
    assert missing_words("sks dog", "sksdog") == ["sks", "dog"]
    assert missing_words("", "anything") == []
