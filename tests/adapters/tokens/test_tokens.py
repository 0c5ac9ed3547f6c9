"""Virtual tokens: soft prompts and prefixes on language models.

The expected numbers come from the definition, written out with the model's own parts: a soft prompt is embeddings
before those of the text (``inputs_embeds``), a prefix is keys and values that stand in the cache before the text comes.
"""

from __future__ import annotations

import copy
import inspect
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

import studio
from studio import adapters
from studio.adapters import attach, bake, blend, blended, detach, for_tasks, sample_rows, state
from studio.adapters.methods import LoRA, MultitaskPrompt, PrefixTuning, PromptTuning, PTuning
from studio.errors import BadConfig, DoesNotFit, NoEffect, UnsupportedLayer
from tiny import language

CAUSAL = ("llama", "mistral", "gemma3", "gpt2", "opt")
BOTH = ("t5", "bart")
M = 4
METHODS = {
    "prompt": lambda: PromptTuning(tokens=M),
    "ptuning-mlp": lambda: PTuning(tokens=M, hidden=6),
    "ptuning-lstm": lambda: PTuning(tokens=M, hidden=6, encoder="lstm"),
    "multitask": lambda: MultitaskPrompt(tokens=M, rank=2),
    "prefix": lambda: PrefixTuning(tokens=M),
    "prefix-network": lambda: PrefixTuning(tokens=M, hidden=6),
}


def texts(rows: int = 3, length: int = 5, seed: int = 1) -> Tensor:
    return torch.randint(3, 60, (rows, length), generator=torch.Generator().manual_seed(seed))


def call(model: Any, ids: Tensor, mask: Tensor | None = None, **more: Any) -> Tensor:
    """The logits; a model with a decoder is asked about a text of its own."""
    if model.config.is_encoder_decoder:
        more = {"decoder_input_ids": texts(len(ids), 3, 7), **more}
    return model(input_ids=ids, attention_mask=mask, **more).logits


def close(actual: Tensor, expected: Tensor, relative: float = 1e-5) -> None:
    error = ((actual - expected).norm() / expected.norm()).item()
    assert error <= relative, f"relative error {error:.1e} > {relative:.0e}"


def embedded(model: Any, ids: Tensor) -> Tensor:
    stack = model.get_encoder() if model.config.is_encoder_decoder else model
    return stack.get_input_embeddings()(ids)


def adapter_of(model: Any, name: str = "default") -> Any:
    return model._modules["adapters"].get(name)


def padded(side: str) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Three texts of 5, 3 and 4 tokens as one batch, its mask, and each alone."""
    rows = [texts(1, length, 10 + length) for length in (5, 3, 4)]
    fill = [torch.zeros(1, 5 - row.shape[1], dtype=torch.long) for row in rows]
    parts = [(space, row) if side == "left" else (row, space) for space, row in zip(fill, rows, strict=True)]
    marks = [(space, torch.ones_like(row)) for space, row in zip(fill, rows, strict=True)]
    mask = [pair if side == "left" else pair[::-1] for pair in marks]
    return torch.cat([torch.cat(p, 1) for p in parts]), torch.cat([torch.cat(p, 1) for p in mask]), rows


def pulled(model: Any, ids: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The logits, numbers to weigh them with, and the gradients of the adapter that the weighed sum has."""
    logits = call(model, ids)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (logits * weights).sum().backward()
    found = {name: tensor.grad.clone() for name, tensor in state(model).items()}
    for tensor in state(model).values():
        tensor.grad = None
    return logits, weights, found


# -- the definition ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        *((kind, "prompt") for kind in (*CAUSAL, *BOTH, "bert")),
        *(("llama", method) for method in ("ptuning-mlp", "ptuning-lstm", "multitask")),
    ],
)
def test_a_soft_prompt_is_embeddings_before_the_text(kind: str, method: str) -> None:
    model, ids = language(kind, torch.float64), texts()
    attach(model, METHODS[method]())
    logits, weights, found = pulled(model.double(), ids)
    prompt = adapter_of(model).embedded(len(ids), None).expand(len(ids), -1, -1)
    with blended(model, {}):
        both = torch.cat([prompt, embedded(model, ids)], dim=1)
        more = {"decoder_input_ids": texts(len(ids), 3, 7)} if model.config.is_encoder_decoder else {}
        expected = model(inputs_embeds=both, **more).logits
    expected = expected[:, M:] if kind in CAUSAL else expected
    close(logits, expected, 1e-12)
    (expected * weights).sum().backward()
    for name, tensor in state(model).items():
        close(found[name], tensor.grad, 1e-10)
    assert all(p.grad is None for key, p in model.named_parameters() if not key.startswith("adapters."))


@pytest.mark.parametrize("kind", CAUSAL)
@pytest.mark.parametrize("method", ["prefix", "prefix-network"])
def test_a_prefix_is_keys_and_values_in_the_cache(kind: str, method: str) -> None:
    model, ids = language(kind, torch.float64), texts()
    attach(model, METHODS[method]())
    logits, weights, found = pulled(model.double(), ids)
    adapter = adapter_of(model)
    heads, size = next(iter(adapter.spans.values()))[1].heads, next(iter(adapter.spans.values()))[1].size
    columns = adapter.made().view(M, 2, 2, heads, size).permute(1, 2, 3, 0, 4)  # layer, key or value, head, token
    cache = DynamicCache([(k.expand(3, -1, -1, -1), v.expand(3, -1, -1, -1)) for k, v in columns])
    with blended(model, {}):
        expected = model(ids, past_key_values=cache, attention_mask=torch.ones(3, M + 5)).logits
    close(logits, expected, 1e-12)
    (expected * weights).sum().backward()
    for name, tensor in state(model).items():
        close(found[name], tensor.grad, 1e-10)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("place", ["decoder", "cross", "encoder"])
def test_a_prefix_reaches_every_attention_of_a_place(kind: str, place: str) -> None:
    """Softmax over [prefix; keys], computed by hand in the first attention of the place."""
    model, ids = language(kind, torch.float64), texts()
    model.set_attn_implementation("eager")
    base = call(model, ids)
    attach(model, PrefixTuning(tokens=M, places=(place,)))
    model.double()
    seen: dict[str, Any] = {}
    adapter = adapter_of(model)
    path, (_, attention) = next(iter(adapter.spans.items()))

    def watch(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        seen.update(output=output[0], states=kwargs.get("hidden_states", args[0] if args else None), kwargs=kwargs)

    handle = attention.module.register_forward_hook(watch, with_kwargs=True)
    logits = call(model, ids)
    handle.remove()
    source = seen["kwargs"].get("key_value_states")
    source = seen["states"] if source is None else source
    by_hand = attended(attention.module, kind, place, adapter.at(path), seen["states"], source)
    close(seen["output"], by_hand, 1e-12)
    assert len(adapter.spans) == 3 and (logits - base).norm() > 1e-3 * base.norm()
    logits.square().sum().backward()
    gradient = state(model)["prefix"].grad
    assert gradient is not None
    assert all(bool(part.abs().sum() > 0) for part in gradient.split(2 * attention.width, dim=1))


def attended(
    layer: Any, kind: str, place: str, prefix: tuple[Tensor, Tensor], states: Tensor, source: Tensor
) -> Tensor:
    """The output of an attention whose keys and values have a prefix before them."""
    parts = {"q": "q", "k": "k", "v": "v", "o": "o"} if kind == "t5" else {
        "q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "out_proj"
    }  # fmt: skip
    q, k, v, o = (getattr(layer, parts[one]) for one in "qkvo")

    def split(x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], 4, 4).transpose(1, 2)

    before_k, before_v = prefix
    keys = torch.cat([before_k.expand(3, -1, -1, -1), split(k(source))], dim=2)
    values = torch.cat([before_v.expand(3, -1, -1, -1), split(v(source))], dim=2)
    scores = split(q(states)) @ keys.mT * (1.0 if kind == "t5" else 0.5)
    length, width = scores.shape[-2:]
    if kind == "t5" and place != "cross":  # relative positions: the prefix stands before the text
        scores = scores + layer.compute_bias(length, width, past_seen_tokens=M)
    if place == "decoder":
        scores = scores.masked_fill(torch.ones(length, width).triu(M + 1).bool(), float("-inf"))
    return o((scores.softmax(-1) @ values).transpose(1, 2).flatten(2))


# -- batches -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", (*CAUSAL, *BOTH))
@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_rows_of_a_padded_batch_are_the_rows_alone(kind: str, method: str, side: str) -> None:
    if side == "left" and kind == "bart":
        pytest.skip("BART counts padding as positions: without any adapter its rows depend on padding at the left")
    model = language(kind)
    unpadded = kind == "t5" and side == "left"  # its encoder counts how far a prefix is, padding between them too
    attach(
        model,
        PrefixTuning(tokens=M, places=("decoder", "cross")) if method == "prefix" and unpadded else METHODS[method](),
    )
    ids, mask, rows = padded(side)
    together = call(model, ids, mask)
    for index, row in enumerate(rows):
        if model.config.is_encoder_decoder:
            more = {"decoder_input_ids": texts(3, 3, 7)[index : index + 1]}
            alone, found = model(input_ids=row, **more).logits, together[index]
        else:
            alone, found = model(row).logits, together[index][mask[index].bool()]
        close(found, alone[0], 1e-5)


@pytest.mark.parametrize("kind", ("llama", "mistral", "gpt2", "opt", "t5", "bart", "bert"))
def test_a_prompt_can_be_on_in_some_rows(kind: str) -> None:
    model = language(kind)
    attach(model, PromptTuning(tokens=M), name="one")
    attach(model, PromptTuning(tokens=2), name="two", seed=1)
    ids, ones, twos = texts(), [0.0, 1.0, 1.0], [1.0, 1.0, 0.0]
    with blended(model, {"one": ones, "two": twos}):
        together = call(model, ids)
        with sample_rows(model, [2, 0, 1]):
            moved = call(model, ids)
    for row in range(3):
        more = {"decoder_input_ids": texts(3, 3, 7)[row : row + 1]} if model.config.is_encoder_decoder else {}
        with blended(model, {"one": ones[row], "two": twos[row]}):
            close(together[row : row + 1], call(model, ids[row : row + 1], **more), 1e-5)
        with blended(model, {"one": ones[(2, 0, 1)[row]], "two": twos[(2, 0, 1)[row]]}):
            close(moved[row : row + 1], call(model, ids[row : row + 1], **more), 1e-5)


@pytest.mark.parametrize("kind", ("llama", "mistral", "gpt2", "opt", "t5", "bert"))
def test_a_prefix_can_be_weaker_in_some_rows(kind: str) -> None:
    model = language(kind)
    attach(model, PrefixTuning(tokens=M), name="one")
    attach(model, PrefixTuning(tokens=2), name="two", seed=1)
    ids, ones, twos = texts(), [0.0, 0.3, 1.0], [2.0, 1.0, 0.0]
    with blended(model, {"one": ones, "two": twos}):
        together = call(model, ids)
    for row in range(3):
        more = {"decoder_input_ids": texts(3, 3, 7)[row : row + 1]} if model.config.is_encoder_decoder else {}
        with blended(model, {"one": ones[row], "two": twos[row]}):
            close(together[row : row + 1], call(model, ids[row : row + 1], **more), 1e-5)


def test_bart_says_that_its_rows_need_one_prefix() -> None:
    model = language("bart")
    attach(model, PrefixTuning(tokens=M))
    with blended(model, {"default": [1.0, 0.0, 1.0]}), pytest.raises(DoesNotFit, match="once for each"):
        call(model, texts())


@torch.no_grad()
@pytest.mark.parametrize("kind", ("llama", "bart"))
@pytest.mark.parametrize("method", list(METHODS))
def test_off_is_the_base_bit_for_bit(kind: str, method: str) -> None:
    model, ids = language(kind), texts()
    base = call(model, ids)
    attach(model, METHODS[method]())
    assert not torch.equal(call(model, ids), base)
    with blended(model, {}):
        assert torch.equal(call(model, ids), base)
    with blended(model, {"default": 0.0}):
        assert torch.equal(call(model, ids), base)


def test_a_strength_multiplies_the_weight_of_a_prefix() -> None:
    """Strength n of one token is n times the same token: exp(score + log n) = n · exp(score)."""
    model, ids = language("llama", torch.float64), texts()
    attach(model, PrefixTuning(tokens=1), name="one")
    attach(model, PrefixTuning(tokens=3), name="three", seed=1)
    model.double()
    with torch.no_grad():
        state(model, "three")["prefix"].copy_(state(model, "one")["prefix"].expand(3, -1))
    positions = torch.arange(5)[None]
    with blended(model, {"three": 1.0}):
        expected = model(ids, position_ids=positions).logits
    with blended(model, {"one": 3.0}):  # positions go on behind 1 token instead of 3
        close(model(ids, position_ids=positions + 2).logits, expected, 1e-6)  # log 3 in fp32
    with blended(model, {"one": studio.Strength(3.0, blocks={"*.0.self_attn": 1 / 3})}):
        assert (model(ids, position_ids=positions + 2).logits - expected).abs().max() > 1e-6


def test_prompts_prefixes_and_lora_act_together() -> None:
    model, ids = language("llama"), texts()
    attach(model, LoRA(rank=2, init="orthogonal", targets="all-linear"), name="lora")
    changed = model(inputs_embeds=torch.cat([torch.zeros(3, 0, 16), embedded(model, ids)], 1)).logits
    attach(model, PromptTuning(tokens=M), name="prompt")
    attach(model, PrefixTuning(tokens=2), name="prefix")
    found = call(model, ids)
    prompt = state(model, "prompt")["prompt"].expand(3, -1, -1)
    with blended(model, {"lora": 1.0, "prefix": 1.0}):
        expected = model(inputs_embeds=torch.cat([prompt, embedded(model, ids)], 1)).logits[:, M:]
    close(found, expected, 1e-6)
    with blended(model, {"lora": 1.0}):
        close(call(model, ids), changed, 1e-6)
    assert (found - changed).norm() > 1e-2 * changed.norm()


def test_several_prompts_stand_in_the_order_of_attaching() -> None:
    model, ids = language("llama"), texts()
    for index, name in enumerate("ab"):
        attach(model, PromptTuning(tokens=2 + index), name=name, seed=index)
    prompts = [state(model, name)["prompt"].expand(3, -1, -1) for name in "ab"]
    found = call(model, ids)
    with blended(model, {}):
        close(found, model(inputs_embeds=torch.cat([*prompts, embedded(model, ids)], 1)).logits[:, 5:], 1e-6)


# -- generation --------------------------------------------------------------------------------------------------------

GENERATIONS = {"greedy": {"do_sample": False}, "beams": {"num_beams": 3}, "sampled": {"do_sample": True, "top_k": 20}}


@pytest.mark.parametrize("how", list(GENERATIONS))
@pytest.mark.parametrize("kind", ("llama", "gemma3", "gpt2", "opt", "t5", "bart"))
@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_generate_goes_on_as_calls_without_a_cache_do(kind: str, method: str, how: str) -> None:
    model = language(kind)
    attach(model, METHODS[method]())
    ids, mask, _ = padded("right" if model.config.is_encoder_decoder else "left")
    options = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 8, "pad_token_id": 0, **GENERATIONS[how]}
    made = []
    for use_cache in (True, False):
        torch.manual_seed(3)
        made.append(model.generate(**options, use_cache=use_cache))
    assert torch.equal(*made)
    with blended(model, {}):
        torch.manual_seed(3)
        assert not torch.equal(model.generate(**options), made[0])


@pytest.mark.parametrize("kind", ("llama", "mistral", "gpt2", "opt", "t5", "bart"))
@pytest.mark.parametrize("method", ["prompt", "prefix"])
@pytest.mark.parametrize("beams", [1, 3])
def test_rows_of_a_generation_are_the_rows_alone(kind: str, method: str, beams: int) -> None:
    model = language(kind)
    attach(model, METHODS[method]())
    per_sample = not (kind == "bart" and method == "prefix")
    strengths = [1.0, 0.0, 1.0] if per_sample else [1.0, 1.0, 1.0]
    ids, mask, rows = padded("right" if model.config.is_encoder_decoder else "left")
    options = {"max_new_tokens": 6, "pad_token_id": 0, "num_beams": beams, "do_sample": False}
    with blended(model, {"default": strengths if per_sample else 1.0}):
        together = model.generate(ids, attention_mask=mask, **options)
    for index, row in enumerate(rows):
        with blended(model, {"default": strengths[index]}):
            alone = model.generate(row, attention_mask=torch.ones_like(row), **options)
        assert torch.equal(together[index, -6:], alone[0, -6:])


def test_a_prompt_generates_what_its_embeddings_generate() -> None:
    model, ids = language("llama"), texts()
    attach(model, PromptTuning(tokens=M))
    prompt = state(model)["prompt"].expand(3, -1, -1)
    for options in GENERATIONS.values():
        torch.manual_seed(4)
        found = model.generate(ids, max_new_tokens=6, **options)[:, 5:]
        with blended(model, {}):
            torch.manual_seed(4)
            both = torch.cat([prompt, embedded(model, ids)], 1)
            assert torch.equal(found, model.generate(inputs_embeds=both, max_new_tokens=6, **options))


@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_a_cache_of_the_callers_goes_on(method: str) -> None:
    model, ids = language("llama"), texts(2, 8)
    attach(model, METHODS[method]())
    whole = model(ids).logits
    first = model(ids[:, :5], use_cache=True)
    second = model(ids[:, 5:7], past_key_values=first.past_key_values, attention_mask=torch.ones(2, 7))
    third = model(ids[:, 7:], past_key_values=second.past_key_values)
    close(torch.cat([first.logits, second.logits, third.logits], 1), whole, 1e-5)


def test_a_static_cache_has_a_prefix_before_it() -> None:
    model, (ids, mask, _) = language("llama"), padded("left")
    attach(model, PrefixTuning(tokens=M))
    options = {"attention_mask": mask, "max_new_tokens": 5}
    static = model.generate(ids, cache_implementation="static", disable_compile=True, **options)
    assert torch.equal(static, model.generate(ids, **options))


@torch.no_grad()
@pytest.mark.parametrize("method", ["prompt", "prefix"])
def test_an_offloaded_model_carries_virtual_tokens(method: str) -> None:
    from accelerate import cpu_offload

    model, ids = language("llama"), texts()
    attach(model, METHODS[method]())
    expected = call(model, ids)
    detach(model)
    cpu_offload(model, execution_device="cpu")
    attach(model, METHODS[method]())
    assert torch.equal(call(model, ids), expected)


def test_a_cache_of_another_prompt_is_refused() -> None:
    model, ids = language("llama"), texts(2, 8)
    plain = model(ids[:, :5], use_cache=True).past_key_values
    attach(model, PromptTuning(tokens=M))
    with pytest.raises(DoesNotFit, match="begun with the soft prompts none"):
        model(ids[:, 5:], past_key_values=plain)
    ours = model(ids[:, :5], use_cache=True).past_key_values
    with blended(model, {}), pytest.raises(DoesNotFit, match=r"'default' \(4 tokens\), and now none act"):
        model(ids[:, 5:], past_key_values=ours)


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "reentrant"), [("llama", False), ("llama", True), ("gpt2", False), ("bart", False), ("t5", True)]
)
@pytest.mark.parametrize("method", list(METHODS))
def test_gradient_checkpointing_changes_no_gradient(kind: str, method: str, reentrant: bool) -> None:
    gradients, losses = [], []
    for checkpointed in (False, True):
        model, ids = language(kind, torch.float64), texts()
        for module in model.modules():  # what is dropped would differ between two models
            for name in {"p", "dropout", "attention_dropout"} & set(vars(module)):
                setattr(module, name, 0.0)
        attach(model, METHODS[method]())
        model.double().train()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        more = {"decoder_input_ids": texts(3, 3, 7)} if model.config.is_encoder_decoder else {}
        loss = model(input_ids=ids, labels=more.get("decoder_input_ids", ids), use_cache=False, **more).loss
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: tensor.grad for name, tensor in state(model).items()})
    close(losses[1], losses[0], 1e-12)
    for name, gradient in gradients[0].items():
        assert gradient is not None and gradient.abs().sum() > 0, f"no gradient reached {name}"
        close(gradients[1][name], gradient, 1e-10)


def test_labels_and_the_loss_are_those_of_the_text() -> None:
    model, ids = language("llama", torch.float64), texts()
    attach(model, PromptTuning(tokens=M))
    model.double()
    found = model(ids, labels=ids)
    expected = nn.functional.cross_entropy(found.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    close(found.loss, expected, 1e-6)  # transformers computes it in fp32
    assert model(ids, logits_to_keep=1).logits.shape == (3, 1, 64)
    more = model(ids, output_hidden_states=True)
    assert {state.shape for state in more.hidden_states} == {(3, 5, 16)}


def test_training_goes_on_from_a_saved_encoder(tmp_path) -> None:
    def steps(model: Any, count: int) -> None:
        model.train()
        for _ in range(count):
            model(texts(), labels=texts()).loss.backward()
            with torch.no_grad():
                for tensor in state(model).values():
                    tensor -= 0.1 * tensor.grad
                    tensor.grad = None

    for method in ("ptuning-mlp", "ptuning-lstm", "prefix-network"):
        straight = language("llama")
        attach(straight, METHODS[method]())
        steps(straight, 4)
        first = language("llama")
        attach(first, METHODS[method]())
        steps(first, 2)
        file = studio.save(first, tmp_path / f"{method}.safetensors")
        second = language("llama")
        studio.load(second, file, trainable=True)
        steps(second, 2)
        assert all(torch.equal(tensor, state(second)[key]) for key, tensor in state(straight).items())


# -- tasks -------------------------------------------------------------------------------------------------------------


def test_tasks_are_named_per_sample() -> None:
    model, ids = language("llama"), texts()
    attach(model, MultitaskPrompt(tokens=M, tasks=3, rank=2))
    with torch.no_grad():
        for tensor in state(model).values():
            tensor.normal_(generator=torch.Generator().manual_seed(5))
    tensors = state(model)
    with pytest.raises(DoesNotFit, match="has 3 tasks"):
        model(ids)
    found = model(ids, task_ids=torch.tensor([2, 0, 2])).logits
    for row, task in enumerate((2, 0, 2)):
        prompt = tensors["prompt"] * (tensors["cols"][task] @ tensors["rows"][task])
        with blended(model, {}):
            both = torch.cat([prompt[None], embedded(model, ids[row : row + 1])], 1)
            close(found[row], model(inputs_embeds=both).logits[0, M:], 1e-5)
    with for_tasks(model, [2, 0, 2]):
        assert torch.equal(model(ids).logits, found)
    with pytest.raises(DoesNotFit, match="numbered 0 to 2"):
        model(ids, task_ids=[0, 1, 3])
    for beams in (1, 2):
        together = model.generate(ids, max_new_tokens=4, num_beams=beams, task_ids=[2, 0, 1])
        for row, task in enumerate((2, 0, 1)):
            alone = model.generate(ids[row : row + 1], max_new_tokens=4, num_beams=beams, task_ids=[task])
            assert torch.equal(together[row], alone[0])
    with pytest.raises(DoesNotFit, match="3 rows; name one per row"):
        model(ids, task_ids=[0, 1])
    with pytest.raises(DoesNotFit, match="no soft prompt"), for_tasks(language("llama"), [0]):
        pass


# -- starts ------------------------------------------------------------------------------------------------------------


def test_a_prompt_starts_from_tokens() -> None:
    model = language("gemma3")  # its embeddings are scaled
    table = model.get_input_embeddings()

    def tokenizer(text: str) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) % 60 for letter in text]}

    config = PromptTuning.of_text("abcdef", tokenizer, tokens=4)
    attach(model, config)
    assert torch.equal(state(model)["prompt"], table(torch.tensor(config.start_tokens[:4])))
    detach(model)
    attach(model, PromptTuning(tokens=5, init="text", start_tokens=(7, 9)))
    assert torch.equal(state(model)["prompt"], table(torch.tensor([7, 9, 7, 9, 7])))
    detach(model)
    attach(model, PromptTuning(tokens=5, init="vocabulary"))
    rows = table(torch.arange(64))
    assert all(bool((rows == row).all(1).any()) for row in state(model)["prompt"])
    detach(model)
    with pytest.raises(BadConfig, match="start_tokens has 64, and the vocabulary"):
        attach(model, PromptTuning(tokens=2, init="text", start_tokens=(3, 64)))
    assert not studio.adapters(model) and "adapters" not in model._modules


@pytest.mark.parametrize("method", list(METHODS))
def test_the_start_follows_the_seed(method: str) -> None:
    made = []
    for seed in (0, 0, 1):
        model = language("llama")
        torch.rand(seed + 1)
        attach(model, METHODS[method](), seed=seed)
        made.append(torch.cat([tensor.flatten() for tensor in state(model).values()]))
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])


def test_a_prefix_counts_key_heads() -> None:
    model = language("llama")
    report = attach(model, PrefixTuning(tokens=5))
    assert report.parameters == 5 * 2 * 2 * (2 * 4)  # tokens, layers, key and value, grouped heads of 4
    detach(model)
    assert attach(model, PrefixTuning(tokens=5, init="zero")).parameters == 5 * 2 * 2 * 8
    assert state(model)["prefix"].count_nonzero() == 0


# -- the base comes back -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ("llama", "bart"))
def test_detach_gives_the_base_back_bit_for_bit(kind: str) -> None:
    model, ids = language(kind), texts()
    base = call(model, ids)

    def look() -> Any:
        return [
            (name, type(module), id(module), set(vars(module)), len(module._forward_hooks),
             len(module._forward_pre_hooks), len(module._forward_pre_hooks_with_kwargs), list(module._modules))
            for name, module in model.named_modules()
        ]  # fmt: skip

    before, keys = look(), [(key, id(p), p.requires_grad) for key, p in model.named_parameters()]
    signature = inspect.signature(model.forward)
    for name, method in METHODS.items():
        attach(model, method(), name=name)
    assert inspect.signature(model.forward) == signature and type(model) is before[0][1]
    assert [key for key in model.state_dict() if key.startswith("adapters.prompt.")] == ["adapters.prompt.prompt"]
    call(model, ids)
    model.generate(ids, max_new_tokens=2)
    detach(model)
    assert look() == before and [(key, id(p), p.requires_grad) for key, p in model.named_parameters()] == keys
    assert torch.equal(call(model, ids), base)


@pytest.mark.parametrize("method", list(METHODS))
def test_a_copy_acts_like_the_original_and_apart_from_it(method: str) -> None:
    model, ids = language("llama"), texts()
    attach(model, METHODS[method]())
    expected = call(model, ids)
    copied = copy.deepcopy(model)
    pickled = io.BytesIO()
    torch.save(model, pickled)
    loaded = torch.load(io.BytesIO(pickled.getvalue()), weights_only=False)
    blend(model, {})
    for other in (copied, loaded):
        assert torch.equal(call(other, ids), expected)
        detach(other)
        assert torch.equal(call(other, ids), call(model, ids))
    blend(model, "default")
    assert torch.equal(call(model, ids), expected)


def test_the_base_saves_itself_without_its_prompt(tmp_path) -> None:
    model = language("llama")
    attach(model, PromptTuning(tokens=M))
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert not [key for key in again.state_dict() if "adapters" in key]
    with blended(model, {}):
        assert torch.equal(call(again, texts()), call(model, texts()))


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_what_is_no_language_model_is_refused_by_name(tiny_base) -> None:
    from studio.families import open_base

    pipe = open_base(tiny_base).pipe
    for target in (pipe, pipe.unet):
        with pytest.raises(UnsupportedLayer, match="soft prompts on a diffusion UNet2DConditionModel"):
            attach(target, PromptTuning())
    with pytest.raises(UnsupportedLayer, match="CLIPTextModel takes token ids only"):
        attach(pipe.text_encoder, PromptTuning())
    with pytest.raises(UnsupportedLayer, match="Linear: the virtual tokens of PrefixTuning need"):
        attach(nn.Linear(3, 3), PrefixTuning())
    assert not vars(pipe.unet).get("_studio_assembly")


def test_impossible_settings_are_refused() -> None:
    for config, match in (
        (lambda: PromptTuning(targets=("q_proj",)), "has no target layers"),
        (lambda: PrefixTuning(exclude=("q_proj",)), "has no target layers"),
        (lambda: PromptTuning(tokens=0), "at least 1"),
        (lambda: PromptTuning(init="text"), "given with init='text'"),
        (lambda: PromptTuning(start_tokens=(3,)), "left out with init='random'"),
        (lambda: PTuning(encoder="gru"), "'mlp' or 'lstm'"),
        (lambda: PTuning(layers=3), "'lstm' where layers"),
        (lambda: PrefixTuning(places=("decodr",)), "some of decoder, cross, encoder"),
        (lambda: MultitaskPrompt(tasks=0), "at least 1"),
    ):
        with pytest.raises(BadConfig, match=match):
            config()
    model = language("llama")
    for config, error, match in (
        (PromptTuning(tokens=64), DoesNotFit, "leave no room for text: LlamaForCausalLM has a context of 64"),
        (PrefixTuning(tokens=64), DoesNotFit, "leave no room"),
        (PromptTuning(decoder=True), DoesNotFit, "needs a model with an encoder and a decoder"),
        (PrefixTuning(places=("cross",)), UnsupportedLayer, "has no cross attention"),
    ):
        with pytest.raises(error, match=match):
            attach(model, config)
        assert "adapters" not in model._modules and not vars(model).get("_studio_assembly")
    for config in (PromptTuning(tokens=60), PrefixTuning(tokens=60)):
        attach(model, config)
        with pytest.raises(DoesNotFit, match="60 virtual tokens and 5 of text are more than the context"):
            model(texts())
        detach(model)


def test_strengths_that_mean_nothing_are_refused() -> None:
    model = language("llama")
    attach(model, PromptTuning(tokens=M), name="prompt")
    attach(model, PrefixTuning(tokens=M), name="prefix")
    for wrong in ({"prompt": 0.5}, {"prompt": [1.0, 2.0]}, {"prefix": -1.0}):
        with pytest.raises(BadConfig, match="only 1 and 0|0 or more"):
            blend(model, wrong)
    assert studio.adapters(model)["prompt"].strength == 1.0
    with pytest.raises(DoesNotFit, match="acts live"):
        bake(model)
    call(model, texts())


def test_other_masks_and_attentions_are_refused() -> None:
    model, ids = language("llama"), texts()
    attach(model, PromptTuning(tokens=M))
    with pytest.raises(DoesNotFit, match="static cache"):
        model.generate(ids, max_new_tokens=3, cache_implementation="static")
    with pytest.raises(DoesNotFit, match="mystery seems to have one entry per token"):
        model.model(input_ids=ids, mystery=torch.zeros(3, 5))
    detach(model)
    attach(model, PrefixTuning(tokens=M))
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(DoesNotFit, match="'sdpa' or 'eager'"):
        model.model.layers[0].self_attn(torch.zeros(1, 2, 16), None, None)


def test_encoder_states_without_the_prompt_are_refused() -> None:
    model, ids = language("t5"), texts()
    states = model.get_encoder()(ids)
    attach(model, PromptTuning(tokens=M))
    with pytest.raises(DoesNotFit, match="computed without the soft prompt"):
        model(encoder_outputs=states, attention_mask=torch.ones(3, 5), decoder_input_ids=texts(3, 3))


def test_a_prompt_that_is_never_read_is_noticed() -> None:
    model = language("llama")
    attach(model, PromptTuning(tokens=M))
    model.model.forward = None
    model.forward = lambda ids: ids
    with pytest.raises(NoEffect):
        model(texts())


def test_the_package_names_all_four() -> None:
    for name in ("prompttuning", "ptuning", "prefixtuning", "multitaskprompt"):
        config = adapters.METHODS[name]
        assert getattr(studio, config.__name__) is config


@pytest.mark.parametrize("config", [PromptTuning(tokens=M), PrefixTuning(tokens=M)], ids=["prompt", "prefix"])
def test_the_loop_trains_virtual_tokens(tiny_language, tmp_path, config) -> None:
    import json

    from transformers import AutoModelForCausalLM

    from studio.trainers import CausalLM, train

    data = tmp_path / "data.jsonl"
    entries = [{"instruction": f"Capital of {a}?", "output": b} for a, b in (("France", "Paris"), ("Peru", "Lima"))]
    data.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    task = CausalLM(base=tiny_language, data=data, preview_prompts=())
    run = train(task, adapter=config, steps=4, batch_size=2, output=tmp_path / "run", quiet=True)
    model = AutoModelForCausalLM.from_pretrained(tiny_language)
    report = studio.load(model, run.adapter)
    assert report.method == config.method and not report.ignored and run.losses[-1] < run.losses[0]
