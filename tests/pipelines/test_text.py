"""Completions: one path, any blend, the same text whatever stands beside it."""

from __future__ import annotations

import pytest
import torch

import studio
from studio.adapters import LoRA, attach, blend, current_blend
from studio.errors import BadConfig, DoesNotFit, UnknownName
from studio.files import save
from studio.pipelines.text import TextPipeline
from studio.pipelines.write import Gumbel, write

PROMPTS = ["What is the capital of France?", "Hi.", "The capital of Paris is what?"]


@pytest.fixture
def pipe(tiny_language):
    return TextPipeline.open(tiny_language)


def put(pipe, name, seed):
    """Attaches a LoRA with random tensors, large enough to change what is written."""
    attach(pipe.model, LoRA(rank=2, targets="attention+mlp"), name=name, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in studio.state(pipe.model, name).values():
            tensor.copy_(torch.randn(tensor.shape, generator=draw) * 0.3)


def texts(made):
    return [completion.text for completion in made]


def test_greedy_is_what_generate_writes(pipe):
    made = pipe.complete(PROMPTS, max_new_tokens=12)
    for prompt, completion in zip(PROMPTS, made, strict=True):
        tokens = pipe.base.tokenizer(f"<user> {prompt}<end><bot>", return_tensors="pt", add_special_tokens=False)
        wanted = pipe.model.generate(**tokens, max_new_tokens=12, do_sample=False)[0, tokens["input_ids"].shape[1] :]
        text = pipe.base.tokenizer.decode(wanted, skip_special_tokens=True)
        assert completion.text == text.strip() and completion.tokens == len(wanted)
        assert completion.ended == (int(wanted[-1]) == pipe.base.tokenizer.eos_token_id)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_completion_does_not_depend_on_its_neighbours(pipe, temperature):
    together = pipe.complete(PROMPTS, max_new_tokens=10, temperature=temperature, seed=3)
    alone = [pipe.complete(prompt, max_new_tokens=10, temperature=temperature, seed=3)[0] for prompt in PROMPTS]
    small = pipe.complete(PROMPTS[::-1], max_new_tokens=10, temperature=temperature, seed=3, batch_size=2)[::-1]
    assert together == alone == small


def test_draws_follow_the_softmax():
    """The share of every token over many seeds is its probability (4000 draws: within four standard deviations)."""
    scores, temperature = torch.tensor([[0.0, 1.0, 2.0, -1.0]]), 0.7
    wanted = torch.softmax(scores[0] / temperature, -1)
    draws = [int(Gumbel(temperature, [seed])(torch.empty(1, 0), scores).argmax()) for seed in range(4000)]
    found = torch.bincount(torch.tensor(draws), minlength=4) / len(draws)
    assert torch.all((found - wanted).abs() < 4 * (wanted * (1 - wanted) / len(draws)).sqrt())


def test_the_seed_decides(pipe):
    drawn = [pipe.complete(PROMPTS, max_new_tokens=10, temperature=1.5, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_each_prompt_can_have_a_seed_of_its_own(pipe):
    asked = {"chat": True, "max_new_tokens": 10, "temperature": 1.5}
    texts_of = [pipe.question(prompt) for prompt in PROMPTS]
    together = write(pipe.base, texts_of, seed=[4, 7, 4], **asked)
    alone = [write(pipe.base, [text], seed=seed, **asked)[0] for text, seed in zip(texts_of, (4, 7, 4), strict=True)]
    assert together == alone
    assert all(len(made.tokens) == 10 or made.ended for made in together)
    with pytest.raises(BadConfig, match="there are 1 seeds for 3 prompts; give one for each"):
        write(pipe.base, texts_of, seed=[4], **asked)


def test_tags_and_blends_per_prompt(pipe):
    put(pipe, "one", 1)
    put(pipe, "two", 2)
    blend(pipe.model, {})
    tagged = [f"{PROMPTS[0]} <one>", f"{PROMPTS[0]} <two:0.8>", f"{PROMPTS[0]} <one:0.5> <two:-0.5>", PROMPTS[0]]
    blends = [{"one": 1.0}, {"two": 0.8}, {"one": 0.5, "two": -0.5}, {}]
    by_tag = pipe.complete(tagged, max_new_tokens=10)
    assert [completion.prompt for completion in by_tag] == [PROMPTS[0]] * 4
    assert len(set(texts(by_tag))) == 4, "four blends write four texts"
    assert by_tag == pipe.complete([PROMPTS[0]] * 4, blend=blends, max_new_tokens=10)
    assert by_tag[2:] == [pipe.complete(PROMPTS[0], blend=wanted, max_new_tokens=10)[0] for wanted in blends[2:]]
    per_prompt = pipe.complete([PROMPTS[0]] * 2, blend={"one": [1.0, 0.0], "two": [0.0, 0.8]}, max_new_tokens=10)
    assert per_prompt == by_tag[:2]
    assert current_blend(pipe.model) == {}, "the blend is given back"


def test_raw_and_chat(pipe):
    raw = pipe.complete("<user> Hi.<end><bot>", chat=False, max_new_tokens=8)
    assert texts(raw) == texts(pipe.complete("Hi.", chat=True, max_new_tokens=8))
    assert texts(pipe.complete("Hi.", max_new_tokens=8)) == texts(raw), "the tokenizer has a template"
    pipe.base.tokenizer.chat_template = None
    assert texts(pipe.complete("Hi.", max_new_tokens=8)) == texts(pipe.complete("Hi.", chat=False, max_new_tokens=8))


def test_an_adapter_says_how_it_is_asked(pipe, tmp_path):
    put(pipe, "one", 1)
    file = save(pipe.model, tmp_path / "one.safetensors", name="one", metadata={"form": "text"})
    other = TextPipeline.open(pipe.base.folder)
    other.load(file)
    assert not other.asks_by_chat
    assert other.complete("Hi.", max_new_tokens=8) == other.complete("Hi.", chat=False, max_new_tokens=8)


def test_an_adapter_for_another_tokenizer_is_refused(pipe, tmp_path):
    put(pipe, "one", 1)
    facts = {"tokenizer": "0" * 64, "base": "parrot"}
    file = save(pipe.model, tmp_path / "one.safetensors", name="one", metadata=facts)
    other = TextPipeline.open(pipe.base.folder)
    with pytest.raises(
        DoesNotFit, match=r"one.safetensors was trained with another tokenizer .* load it on .* \(parrot\)"
    ):
        other.load(file)
    assert other.adapters == {}
    own = save(pipe.model, tmp_path / "own.safetensors", name="one", metadata={"tokenizer": other.base.tokenizer_hash})
    assert other.load(own).name == "one"


def test_the_tokenizers_hash_is_that_of_its_numbers(pipe, tiny_language):
    first = pipe.base.tokenizer_hash
    pipe.base.tokenizer(["a", "b c d"], padding=True, truncation=True, max_length=4)  # leaves its mark on the tokenizer
    del pipe.base.tokenizer_hash  # a cached property
    assert pipe.base.tokenizer_hash == first == TextPipeline.open(tiny_language).base.tokenizer_hash
    other = TextPipeline.open(tiny_language)
    other.base.tokenizer.add_tokens(["Bamako"])
    assert other.base.tokenizer_hash != first


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"prompt": "word " * 60}, DoesNotFit, "tokens and tiny-language reads 96: nothing can be written behind it"),
        ({"prompt": "", "chat": False}, BadConfig, "has no token"),
        ({"max_new_tokens": 0}, BadConfig, "max_new_tokens=0"),
        ({"temperature": -1.0}, BadConfig, "temperature=-1.0"),
        ({"prompt": "Hi <dog>"}, UnknownName, "asks for the adapter 'dog', which is not loaded"),
        ({"prompt": "Hi <end>", "chat": True}, DoesNotFit, "the user's turn holds '<end>'"),
        ({"blend": [{}, {}]}, BadConfig, "2 blends for 1 prompts; give one dict, or one per prompt"),
    ],
)
def test_bad_requests_are_refused(pipe, change, error, message):
    with pytest.raises(error, match=message):
        pipe.complete(**{"prompt": "Hi.", "max_new_tokens": 4, **change})


def test_the_context_is_the_limit(pipe):
    ((text, tokens, ended),) = write(pipe.base, ["word " * 18], chat=False, max_new_tokens=500)
    asked = len(pipe.base.tokens("word " * 18, chat=False)[0])
    assert text and (ended or asked + len(tokens) == 96)


def test_what_image_pipelines_do_with_adapters_these_do_too(pipe):
    bare, weights = (
        texts(pipe.complete(PROMPTS, max_new_tokens=8)),
        {k: t.clone() for k, t in pipe.model.state_dict().items()},
    )
    put(pipe, "a", 1)
    live = texts(pipe.complete(PROMPTS, max_new_tokens=8))
    pipe.blend({})
    assert texts(pipe.complete(PROMPTS, max_new_tokens=8)) == bare
    pipe.blend("a")
    pipe.bake()
    assert texts(pipe.complete(PROMPTS, max_new_tokens=8)) == live != bare
    pipe.unbake()
    pipe.unload("a")
    assert not pipe.adapters and all(torch.equal(weights[k], t) for k, t in pipe.model.state_dict().items())


def test_prompts_under_many_blends_share_a_pass_and_are_what_they_are_alone(tiny_language, monkeypatch):
    """16 prompts over 15 adapters and the base: one pass, and each text as its adapter writes it alone."""
    pipe = TextPipeline.open(tiny_language)
    generator = torch.Generator().manual_seed(0)
    for n in range(15):
        attach(pipe.model, LoRA(rank=2, targets="attention+mlp"), name=f"a{n}")
        with torch.no_grad():
            for tensor in studio.state(pipe.model, f"a{n}").values():
                tensor.copy_(0.5 * torch.randn(tensor.shape, generator=generator))
    blend(pipe.model, {})
    prompts = [f"{n} and {n * n}?" for n in range(16)]
    blends = [{f"a{n}": 1.0} if n < 15 else {} for n in range(16)]
    alone = [pipe.complete(text, blend=one, max_new_tokens=5)[0] for text, one in zip(prompts, blends, strict=True)]
    passes = []
    generate = pipe.model.generate
    monkeypatch.setattr(pipe.model, "generate", lambda **given: passes.append(1) or generate(**given))
    together = pipe.complete(prompts, blend=blends, max_new_tokens=5)
    assert together == alone and len(passes) == 1 and len({one.text for one in together}) > 4
