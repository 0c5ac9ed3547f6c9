"""Beginnings, ends and system prompts of conversations: one beginning, every end of the base, asked as trained."""

from __future__ import annotations

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import studio
from studio.datasets.chat import Sample
from studio.errors import BadConfig, DoesNotFit
from studio.families.language import LanguageBase
from studio.pipelines import TextPipeline
from studio.trainers import CausalLM, train
from studio.trainers.language.texts import encode, marked

MARKS = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|im_start|>", "<|im_end|>", "<|end|>", "<|eot|>"]
TURNS = Sample(1, (("user", "hi"), ("assistant", "one"), ("user", "and"), ("assistant", "two")))
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PHI = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)


def base_of(template, *, begins=True, ends=(1,)):
    """A base whose tokenizer has a token per letter."""
    vocab = {mark: number for number, mark in enumerate(MARKS)}
    for letter in [*map(chr, range(32, 127)), "\n"]:
        vocab.setdefault(letter, len(vocab))
    made = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    made.add_special_tokens(MARKS)
    if begins:
        made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", additional_special_tokens=MARKS[2:]
    )  # fmt: skip
    tokenizer.chat_template = template
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=256, **sizes))
    model.generation_config.eos_token_id = list(ends)
    return LanguageBase(model.eval(), tokenizer, "tiny")


def learned(base, sample):
    row = encode(sample, base, 400)
    tokens = [token for token, counts in zip(row.tokens, row.learned, strict=True) if counts]
    return "".join(base.tokenizer.convert_ids_to_tokens(tokens))


@pytest.mark.parametrize("begins", [True, False], ids=["tokenizer puts one", "tokenizer puts none"])
@pytest.mark.parametrize("template", [None, ZEPHYR, "{{ bos_token }}" + ZEPHYR, CHATML, PHI])
def test_a_conversation_begins_once_as_plain_text_does(template, begins):
    base = base_of(template, begins=begins)
    written = template is not None and template.startswith("{{ bos")
    for sample in (TURNS, Sample(1, prompt="hi", completion="yes"), Sample(1, completion="<s>hi")):
        tokens = encode(sample, base, 400).tokens
        count = tokens.count(0)
        assert tokens[:1] == (0,) or not count
        assert count == (begins or (written and sample.chat) or sample.completion == "<s>hi")
    assert marked(TURNS, base).startswith("<s>") == (begins or written)


@pytest.mark.parametrize(
    ("template", "ends", "wanted"),
    [
        (ZEPHYR, (1,), "one</s>two</s>"),
        (None, (1,), "one</s>two</s>"),
        (CHATML, (1, 6), "one<|im_end|>two<|im_end|>"),
        (CHATML, (1,), "one<|im_end|>two<|im_end|>"),  # the base's config does not know the template's mark
        (PHI, (1, 7), "one<|end|>two<|end|>"),
        (CHATML.replace("<|im_end|>", "<|eot|>"), (8, 1), "one<|eot|>two<|eot|>"),
    ],
    ids=["Zephyr", "none", "ChatML", "ChatML unknown", "Phi", "Llama 3"],
)
def test_every_end_is_learned_and_stops_an_answer(template, ends, wanted):
    base = base_of(template, ends=ends)
    if template is None:
        wanted = " one</s> two</s>"
    assert learned(base, TURNS) == wanted
    assert learned(base, Sample(1, prompt="a", completion="b")) == "b</s>"
    mark = base.tokenizer.convert_tokens_to_ids(wanted[wanted.rindex("<") :])
    assert mark in base.ends


def test_a_template_that_refuses_the_probe_knows_its_config_alone():
    base = base_of("{{ raise_exception('no') }}", ends=(1, 8))
    assert base.ends == (1, 8)


@pytest.fixture
def taught(tmp_path):
    """An adapter that was trained with one system prompt throughout."""
    lines = [
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text},
                      {"role": "assistant", "content": "yes"}]}
        for text in ("a", "b", "c")
    ]  # fmt: skip
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    base = base_of(CHATML)
    task = CausalLM(base=(base.model, base.tokenizer), data=data, preview_prompts=("d",), preview_tokens=2)
    return train(task, output=tmp_path / "run", steps=1, batch_size=1, adapter=studio.LoRA(rank=2), quiet=True)


def test_an_adapter_is_asked_with_the_system_prompt_that_it_was_trained_with(taught):
    assert studio.inspect(taught.adapter).facts["system"] == "Be brief."
    pipe = TextPipeline(base_of(CHATML))
    plain = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert pipe.system == "" and pipe.question("Hi") == plain
    pipe.load(taught.adapter)
    assert pipe.question("Hi") == f"<|im_start|>system\nBe brief.<|im_end|>\n{plain}"
    assert pipe.question("Hi", system="") == plain
    assert pipe.question("Hi", system="Sing.") == f"<|im_start|>system\nSing.<|im_end|>\n{plain}"
    asked = [pipe.complete("Hi", system=system, max_new_tokens=3)[0].text for system in (None, "Be brief.")]
    assert asked[0] == asked[1]
    with pytest.raises(BadConfig, match="a system prompt is a turn of a conversation"):
        pipe.complete("Hi", chat=False, system="Sing.")


def test_a_run_of_an_earlier_version_that_learned_other_marks_is_refused(taught):
    """It had neither the beginning nor the template's end in its texts; resuming would silently learn others."""
    text = (taught.folder / "run.toml").read_text()
    assert 'begins_with = [\n    "<s>",\n]' in text and 'ends_with = [\n    "<|im_end|>",\n]' in text
    before = text.replace('begins_with = [\n    "<s>",\n]\n', "").replace('ends_with = [\n    "<|im_end|>",\n]\n', "")
    (taught.folder / "run.toml").write_text(before)
    base = base_of(CHATML)
    task = CausalLM(base=(base.model, base.tokenizer), data=taught.folder.parent / "data.jsonl")
    with pytest.raises(DoesNotFit, match=r"task.begins_with was not given and is \['<s>'\]"):
        train(task, output=taught.folder, steps=1, batch_size=1, adapter=studio.LoRA(rank=2), quiet=True)
