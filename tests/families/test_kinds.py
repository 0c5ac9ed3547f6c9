"""What a language base is opened as: every wrong combination of base, kind and labels is refused in one sentence."""

from __future__ import annotations

import pytest

from studio.errors import BadConfig, DoesNotFit, UnknownName
from studio.families.language import KINDS, open_language_base
from studio.pipelines import TextPipeline

BERT = "which transformers has no {} of; it can be opened as a causal language model or a classifier of texts or an "


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"kind": "clasifier"}, UnknownName, "did you mean 'classifier'?"),
        ({"kind": "vision"}, DoesNotFit, BERT.format("vision-language model")),
        ({"labels": ("a", "b")}, BadConfig, "an encoder of texts has no head for labels; leave them out, or say kind="),
        *(
            ({"kind": "classifier", "labels": labels}, BadConfig, f"labels={labels!r}: give a list of texts that are")
            for labels in ([], "spam", ["a", ""], ["a", 5], 5)
        ),
        ({"kind": "classifier", "labels": ["a", "a"]}, BadConfig, "labels=['a', 'a']: give labels that are all diff"),
    ],
)
def test_wrong_combinations_are_refused(tiny_encoder, change, error, message):
    with pytest.raises(error) as caught:
        open_language_base(tiny_encoder, **change)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", sorted({*KINDS} - {"causal-lm", "speech", "vision"}))
def test_a_model_is_no_other_kind_than_its_class_says(tiny_language, kind):
    base = open_language_base(tiny_language)
    with pytest.raises(DoesNotFit, match=f"LlamaForCausalLM is a causal language model, and {KINDS[kind].one} is ask"):
        open_language_base((base.model, base.tokenizer), kind=kind)
    own = type("Own", (type(base.model),), {})(base.model.config)
    assert open_language_base((own, base.tokenizer), kind=kind).kind.name == kind


def test_other_objects_are_refused():
    with pytest.raises(DoesNotFit, match="a pair of a model and its tokenizer, not a tuple"):
        open_language_base((5, 6))


def test_the_labels_of_an_opened_base_stay(tiny_encoder):
    base = open_language_base(tiny_encoder, kind="classifier", labels=("a", "b"))
    assert open_language_base(base, labels=("b", "a")) is base
    with pytest.raises(DoesNotFit, match="tiny-encoder tells a, b apart, and not a, c: give its folder"):
        open_language_base(base, labels=("a", "c"))


@pytest.mark.parametrize("padding", [0, 1])
def test_the_context_of_roberta_is_what_its_positions_hold(tiny_encoder, padding):
    """Its first position is the padding's and one more: a text may fill the others, and no longer one is tried."""
    from transformers import RobertaConfig, RobertaModel

    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4)
    tokenizer = open_language_base(tiny_encoder).tokenizer
    model = RobertaModel(
        RobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=20, pad_token_id=padding, **sizes)
    )
    pipe = TextPipeline.open((model.eval(), tokenizer), kind="encoder")
    assert pipe.base.context == 20 - padding - 1
    filled = "film " * (pipe.base.context - 2)  # two marks are put around it
    assert pipe.embed(filled).shape == (1, 32)
    with pytest.raises(DoesNotFit, match=f"and RobertaModel reads {pipe.base.context}; shorten it"):
        pipe.embed(f"{filled} film")
