"""Headers of files that are made of others: what stays, what is made anew, and what they say they come from."""

from __future__ import annotations

import hashlib
import json

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import studio
from studio.files.convert import convert
from studio.files.hashes import file_hash, file_hashes
from studio.files.header import read_tensors, write_tensors
from studio.files.resize import resize

PARTS = {"attn2_to_k": 768, "attn2_to_v": 768, "attn1_to_q": 320, "attn1_to_out_0": 320}
KEPT = {
    "ss_steps": "1600", "ss_seed": "42", "ss_unet_lr": "0.0001", "ss_sd_model_name": "v1-5.safetensors",
    "ss_output_name": "dog", "ss_tag_frequency": json.dumps({"10_sks dog": {"sks dog": 20}}), "ss_v2": "False",
    "modelspec.trigger_phrase": "sks dog", "modelspec.license": "CC0", "modelspec.author": "somebody",
    "modelspec.thumbnail": "data:image/jpeg;base64,AAAA", "modelspec.date": "2025-01-02", "ot_branch": "master",
    "software": '{"name": "ai-toolkit"}', "training_info": '{"step": 3}', "my own note": "é",
}  # fmt: skip
STALE = {
    "ss_network_dim": "128", "ss_network_alpha": "64.0", "ss_network_args": '{"conv_dim": "8"}', "network_dim": "128",
    "sshs_model_hash": "0" * 64, "sshs_legacy_hash": "0" * 8, "modelspec.hash_sha256": "0x" + "0" * 64,
}  # fmt: skip


def kohya(tmp_path, ranks=(8,), metadata=None):
    """A file as kohya's scripts write it, with hashes that are not true any more."""
    generator, tensors = torch.Generator().manual_seed(0), {}
    for number, (part, cols) in enumerate(PARTS.items()):
        module, rank = f"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_{part}", ranks[number % len(ranks)]
        tensors[f"{module}.lora_down.weight"] = torch.randn(rank, cols, generator=generator).half()
        tensors[f"{module}.lora_up.weight"] = torch.randn(320, rank, generator=generator).half()
        tensors[f"{module}.alpha"] = torch.tensor(rank / 2).half()
    save_file(tensors, tmp_path / "dog.safetensors", metadata={**KEPT, **STALE, **(metadata or {})})
    return tmp_path / "dog.safetensors"


def header(file) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return dict(opened.metadata())


def payload(file) -> str:
    """kohya's recipe: what is behind the header of a file that the library makes of these tensors."""
    content = safetensors.torch.save(load_file(file), {"ss_any": "thing"})
    return hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()


MADE = {
    "convert": lambda file, out: convert(file, out, format="diffusers").file,
    "convert, same format": lambda file, out: convert(file, out, format="kohya").file,
    "resize": lambda file, out: resize(file, out, rank=4).file,
}


@pytest.mark.parametrize("made", MADE)
def test_what_is_no_longer_true_is_made_anew_and_the_rest_stays(made, tmp_path):
    """Check 40: hashes by kohya's recipe or none, rank and alpha of the tensors, every other key as it was."""
    file = kohya(tmp_path)
    said = header(MADE[made](file, tmp_path / "new.safetensors"))
    rank = "4" if made == "resize" else "8"
    assert {key: said.get(key) for key in KEPT} == KEPT
    assert said["sshs_model_hash"] == payload(tmp_path / "new.safetensors")
    assert said["modelspec.hash_sha256"] == f"0x{said['sshs_model_hash']}"
    assert (said["ss_network_dim"], said["ss_network_alpha"]) == (rank, f"{int(rank) / 2:g}")
    assert json.loads(said["ss_network_args"]) == {}
    assert not {"sshs_legacy_hash", "network_dim"} & said.keys()
    assert file_hashes(tmp_path / "new.safetensors").wrong == {}
    word = "resized" if made == "resize" else "converted"
    assert studio.inspect(tmp_path / "new.safetensors").facts[word] == file_hash(file)


def test_mixed_ranks_are_dynamic(tmp_path):
    """Check 40: no single number is true of all layers."""
    file = kohya(tmp_path, ranks=(8, 16))
    for format in ("diffusers", "kohya"):
        said = header(convert(file, tmp_path / f"{format}.safetensors", format=format).file)
        assert said["ss_network_dim"] == said["ss_network_alpha"] == "Dynamic"


def test_the_model_hash_outlives_an_edit_of_metadata_and_no_edit_of_tensors(tmp_path):
    """Check 40: it is of the payload; the legacy hash of what is below 1 MiB is that of nothing."""
    file = convert(kohya(tmp_path), tmp_path / "new.safetensors", format="kohya").file
    read, tensors = read_tensors(file)
    write_tensors(tmp_path / "noted", tensors, {**read.metadata, "modelspec.title": "another"})
    write_tensors(tmp_path / "moved", {key: one * 2 for key, one in tensors.items()}, read.metadata)
    before, noted, moved = (file_hashes(one) for one in (file, tmp_path / "noted", tmp_path / "moved"))
    assert before.payload == noted.payload != moved.payload and before.file != noted.file
    assert before.legacy == "e3b0c442" and noted.wrong == {} and "sshs_model_hash" in moved.wrong


def test_what_another_program_calls_the_base_stays_as_long_as_it_is_true(tmp_path):
    """The layers say SD1: "sd_1.5" is one of its names, and stays over two conversions; SDXL is none."""
    file = kohya(tmp_path, metadata={"ss_base_model_version": "sd_1.5", "modelspec.architecture": "sdxl/lora"})
    there = convert(file, tmp_path / "a.safetensors", format="diffusers", family="sd1").file
    back = convert(there, tmp_path / "b.safetensors", format="kohya").file
    for one in (there, back):
        assert header(one)["ss_base_model_version"] == "sd_1.5"
        assert header(one)["modelspec.architecture"] == "stable-diffusion-v1/lora"


def test_facts_of_the_studio_stay_in_its_entry_and_others_in_the_header(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    studio.attach(model, studio.LoRA(rank=2, targets=("0",)))
    facts = {"trigger": "sks", "note": "of mine", "rank": "not a fact of the file", "sshs_legacy_hash": "00000000"}
    first = studio.save(model, tmp_path / "a.safetensors", metadata=facts)
    said = header(first)
    assert said["note"] == "of mine" and not {"rank", "sshs_legacy_hash", "trigger"} & said.keys()
    studio.detach(model)
    studio.load(model, first, name="default")
    assert studio.save(model, tmp_path / "b.safetensors").read_bytes() == first.read_bytes()


def test_an_extraction_names_both_models(tmp_path):
    from tests.support.tiny_pipelines import build

    base, tuned = build("sd1"), build("sd1")
    with torch.no_grad():
        tuned.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight.add_(0.1)
    base.save_pretrained(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "deep" / "tuned")
    studio.extract(tmp_path / "deep" / "tuned", tmp_path / "base", tmp_path / "a.safetensors", rank=1)
    found = studio.inspect(tmp_path / "a.safetensors")
    assert found.provenance.made == {"extracted from": "tuned"} and found.facts["base"].endswith("base")


def test_a_combination_names_its_parents(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    for name in ("dog", "ink"):
        studio.attach(model, studio.LoRA(rank=2, targets=("0",), init="gaussian"), name=name)
        studio.state(model, name)["0.up"].data.fill_(0.1)
    studio.combine(model, {"dog": 0.7, "ink": 0.4}, name="both")
    said = header(studio.save(model, tmp_path / "a.safetensors", name="both"))
    assert said["ss_network_dim"] == "4" and said["sshs_model_hash"] == payload(tmp_path / "a.safetensors")
    made = studio.inspect(tmp_path / "a.safetensors").provenance.made["combined of"]
    assert "dog" in made and "ink" in made and "0.7" in made and "exact" in made
