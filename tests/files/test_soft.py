"""Files of virtual tokens: ours, and PEFT's in both directions.

The oracle is `peft`: an adapter with random tensors that it saved gives the same logits here, and ours gives the same
there, at the positions of the text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import studio
from studio.adapters import attach, blended, detach, state
from studio.adapters.methods import MultitaskPrompt, PrefixTuning, PromptTuning, PTuning
from studio.errors import BadFile, DoesNotFit, PartialLoad, UnsupportedLayer
from studio.files.header import read_tensors, write_tensors
from tiny import language

TASKS = {
    "llama": "CAUSAL_LM", "mistral": "CAUSAL_LM", "gpt2": "CAUSAL_LM", "opt": "CAUSAL_LM", "gemma3": "CAUSAL_LM",
    "t5": "SEQ_2_SEQ_LM", "bart": "SEQ_2_SEQ_LM", "bert": "SEQ_CLS", "roberta": "SEQ_CLS",
}  # fmt: skip
OURS = {
    "prompt": lambda: PromptTuning(tokens=4),
    "ptuning-mlp": lambda: PTuning(tokens=4, hidden=6),
    "ptuning-lstm": lambda: PTuning(tokens=4, hidden=6, encoder="lstm", layers=1),
    "prefix": lambda: PrefixTuning(tokens=4),
    "prefix-network": lambda: PrefixTuning(tokens=4, hidden=6),
    "multitask": lambda: MultitaskPrompt(tokens=4, tasks=3, rank=2),
}


def theirs(method: str, task: str) -> Any:
    peft = pytest.importorskip("peft")
    given = {"task_type": task, "num_virtual_tokens": 4}
    return {
        "prompt": lambda: peft.PromptTuningConfig(**given),
        "ptuning-mlp": lambda: peft.PromptEncoderConfig(**given, encoder_hidden_size=6),
        "ptuning-lstm": lambda: peft.PromptEncoderConfig(
            **given, encoder_hidden_size=6, encoder_reparameterization_type="LSTM", encoder_num_layers=1
        ),
        "prefix": lambda: peft.PrefixTuningConfig(**given),
        "prefix-network": lambda: peft.PrefixTuningConfig(**given, prefix_projection=True, encoder_hidden_size=6),
        "multitask": lambda: peft.MultitaskPromptTuningConfig(**given, num_tasks=3, num_ranks=2),
    }[method]()


def texts() -> Tensor:
    return torch.randint(3, 60, (2, 5), generator=torch.Generator().manual_seed(1))


def inputs(kind: str, method: str) -> dict[str, Tensor]:
    ids = texts()
    mask = torch.ones_like(ids)
    mask[1, -2:] = 0
    given = {"input_ids": ids, "attention_mask": mask}
    if method == "multitask":
        given["task_ids"] = torch.tensor([2, 0])
    if TASKS[kind] == "SEQ_2_SEQ_LM":
        given["labels"] = ids[:, 1:4].contiguous()
    return given


def close(actual: Tensor, expected: Tensor, mask: Tensor | None = None) -> None:
    if expected.dim() == 3:  # PEFT gives the virtual positions too
        expected = expected[:, -actual.shape[1] :]
    if mask is not None and mask.shape == actual.shape[:2]:
        actual, expected = actual[mask.bool()], expected[mask.bool()]
    error = ((actual - expected).norm() / expected.norm()).item()
    assert error <= 1e-5, f"relative error {error:.1e}"


@pytest.mark.parametrize("kind", list(TASKS))
@pytest.mark.parametrize("method", list(OURS))
def test_pefts_files_give_the_same_here_and_ours_there(tmp_path: Path, kind: str, method: str) -> None:
    peft = pytest.importorskip("peft")
    with torch.random.fork_rng():
        torch.manual_seed(2)
        their = peft.get_peft_model(language(kind), theirs(method, TASKS[kind])).eval()
        with torch.no_grad():
            for name, parameter in their.named_parameters():
                if "prefix_task" in name:  # they start near zero
                    parameter.normal_()
    given = inputs(kind, method)
    expected = their(**given).logits
    their.save_pretrained(tmp_path / "theirs")
    model = language(kind)
    report = studio.load(model, tmp_path / "theirs")  # the classifier in it is the base's
    assert set(report.applied) == set(read_tensors(tmp_path / "theirs/adapter_model.safetensors")[1])
    assert report.format == "peft"
    close(model(**given).logits, expected, given["attention_mask"])
    if TASKS[kind] == "SEQ_2_SEQ_LM" and method.startswith("prefix"):
        assert len({tuple(part.flatten().tolist()) for part in state(model)["prefix"].split(16, dim=1)}) == 6
    studio.save(model, tmp_path / "ours")
    again = peft.PeftModel.from_pretrained(language(kind), str(tmp_path / "ours")).eval()
    close(again(**given).logits, expected)


@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize("method", list(OURS))
def test_saving_what_was_loaded_gives_the_same_bytes(tmp_path: Path, kind: str, method: str) -> None:
    model, given = language(kind), inputs(kind, method)
    attach(model, OURS[method](), name="dog")
    first = studio.save(model, tmp_path / "a.safetensors", name="dog", metadata={"trigger": "sks"})
    other = language(kind)
    report = studio.load(other, first)
    assert report.name == "dog" and report.format == "studio" and not report.ignored
    with torch.no_grad():  # torch's attention rounds otherwise where gradients are asked for
        assert torch.equal(other(**given).logits, model(**given).logits)
    second = studio.save(other, tmp_path / "b.safetensors", name="dog")
    assert first.read_bytes() == second.read_bytes()
    seen = studio.inspect(first)
    assert (seen.method, seen.name, seen.config) == (OURS[method]().method, "dog", OURS[method]())
    assert not seen.unread and seen.facts == {"trigger": "sks"}


@pytest.mark.parametrize("method", ["prompt", "ptuning-lstm", "prefix-network"])
def test_a_peft_folder_comes_back(tmp_path: Path, method: str) -> None:
    """Networks are kept by our files alone: a PEFT folder has what they make, and that acts the same."""
    model, given = language("llama"), inputs("llama", method)
    attach(model, OURS[method]())
    expected = model(**given).logits
    folder = studio.save(model, tmp_path / "dog")
    (adapter_file, config) = (
        folder / "adapter_model.safetensors",
        json.loads((folder / "adapter_config.json").read_text()),
    )
    assert list(read_tensors(adapter_file)[1]) == ["prompt_embeddings"] and config["num_virtual_tokens"] == 4
    assert studio.inspect(folder).method == OURS[method]().method
    detach(model)
    report = studio.load(model, folder, name="again", trainable=True)
    assert report.format == "peft"
    torch.testing.assert_close(model(**given).logits, expected, rtol=1e-5, atol=1e-5)
    assert [tensor.requires_grad for tensor in state(model, "again").values()] == [True]
    with blended(model, {}):
        assert not torch.allclose(model(**given).logits, expected)


def test_half_precision_files_stay_so(tmp_path: Path) -> None:
    model = language("llama")
    attach(model, PromptTuning(tokens=4))
    first = studio.save(model, tmp_path / "a.safetensors", dtype=torch.bfloat16)
    detach(model)
    studio.load(model, first)
    assert state(model)["prompt"].dtype == torch.float32
    assert studio.save(model, tmp_path / "b.safetensors").read_bytes() == first.read_bytes()


def test_what_peft_cannot_say_is_refused(tmp_path: Path) -> None:
    model = language("t5")
    for config, match in (
        (PrefixTuning(tokens=4), "no prefix in an encoder or in cross-attention"),
        (PromptTuning(tokens=4, decoder=True), "before a decoder's input"),
    ):
        attach(model, config)
        with pytest.raises(DoesNotFit, match=match):
            studio.save(model, tmp_path / "folder")
        assert not (tmp_path / "folder").exists()
        detach(model)
    attach(model, PromptTuning(tokens=4))
    with pytest.raises(DoesNotFit, match="kohya's format has no soft prompts"):
        studio.save(model, tmp_path / "a.safetensors", format="kohya")


def test_files_that_do_not_fit_are_refused_and_leave_no_trace(tmp_path: Path, tiny_base: Path) -> None:
    from studio.families import open_base

    model = language("llama")
    attach(model, PromptTuning(tokens=4))
    file = studio.save(model, tmp_path / "a.safetensors")
    folder = studio.save(model, tmp_path / "dog")
    detach(model)
    with pytest.raises(UnsupportedLayer, match="soft prompts on a diffusion UNet2DConditionModel"):
        studio.load(open_base(tiny_base).pipe, file)
    header, tensors = read_tensors(file)

    def rewritten(change: Any) -> Path:
        write_tensors(tmp_path / "b.safetensors", change, header.metadata)
        return tmp_path / "b.safetensors"

    with pytest.raises(DoesNotFit, match="'prompt' has the shape"):
        studio.load(model, rewritten({"prompt": tensors["prompt"][:, :8]}))
    with pytest.raises(PartialLoad, match="'stray': it is no tensor of this method"):
        studio.load(model, rewritten({**tensors, "stray": torch.zeros(2)}))
    config = json.loads((folder / "adapter_config.json").read_text())
    for change, error, match in (
        ({"peft_type": "CARTRIDGE"}, DoesNotFit, "peft_type='CARTRIDGE', a method that is not among"),
        ({"mystery": 3}, DoesNotFit, "mystery=3"),
        ({"num_virtual_tokens": "many"}, BadFile, "cannot be read"),
        ({"peft_type": "MULTITASK_PROMPT_TUNING"}, BadFile, "lacks the tensor prefix_task_cols"),
    ):
        (folder / "adapter_config.json").write_text(json.dumps({**config, **change}))
        stripped = read_tensors(folder / "adapter_model.safetensors")[1]
        write_tensors(folder / "adapter_model.safetensors", stripped, {})
        with pytest.raises(error, match=match):
            studio.load(model, folder)
    assert not studio.adapters(model) and "adapters" not in model._modules and "generate" not in vars(model)


def test_a_classifier_of_another_base_is_named(tmp_path: Path) -> None:
    model = language("bert")
    attach(model, PromptTuning(tokens=4))
    folder = studio.save(model, tmp_path / "dog")
    detach(model)
    with torch.no_grad():
        model.classifier.weight += 1
    with pytest.raises(PartialLoad, match="base_model.classifier.weight"):
        studio.load(model, folder)
    assert studio.load(model, folder, allow_partial=True).ignored.keys() == {"base_model.classifier.weight"}
