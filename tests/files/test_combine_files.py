"""Files that become one without a model: what they would become on their base, and what needs it."""

from __future__ import annotations

import json

import pytest
import torch

import studio
from studio.adapters import COMBINES, adapters
from studio.errors import BadConfig, BadFile, DoesNotFit, NoEffect
from studio.families.shapes import outline
from studio.files import Parent, combine_files, inspect
from studio.files.hashes import file_hash
from studio.files.loose import Loose, read_loose, write_loose
from tests.support.tiny_pipelines import build

SDXL = ("re:unet\\.(down_blocks\\.1|up_blocks\\.0)\\..*attentions\\.[01]\\.transformer_blocks\\.0\\.attn1\\.to_[qv]",
        "re:text_encoder\\..*layers\\.[01]\\.self_attn\\.q_proj")  # fmt: skip


def filled(pipe, name, config, seed):
    studio.attach(pipe, config, name=name, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for tensor in studio.state(pipe, name).values():
        tensor.data = tensor.data + 0.05 * torch.randn(tensor.shape, generator=generator)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Three files of a tiny SDXL, and the pipeline that carries the same adapters."""
    pipe, folder = build("sdxl"), tmp_path_factory.mktemp("tiny")
    targets = ("unet.*.to_q", "unet.*.to_v", "text_encoder.*.q_proj")
    configs = {
        "cat": studio.LoRA(rank=4, alpha=2, targets=targets), "ink": studio.LoRA(rank=4, targets=targets[:2]),
        "fox": studio.LoKr(rank=2, targets=targets[:1]), "owl": studio.DoRA(rank=2, targets=targets[:1]),
    }  # fmt: skip
    for seed, (name, config) in enumerate(configs.items()):
        filled(pipe, name, config, seed)
        studio.save(pipe, folder / f"{name}.safetensors", name=name, format="kohya" if name == "ink" else None)
    return pipe, folder


def same(file, pipe, name):
    """Whether a file holds what an adapter on a pipeline does, to the bit."""
    loose = read_loose(file, base=pipe)
    flat = {f"{path}.{part}": one for path, own in loose.layers.items() for part, one in own.items()}
    state = studio.state(pipe, name)
    assert flat.keys() == state.keys()
    return all(torch.equal(flat[key], state[key]) for key in flat)


@pytest.mark.parametrize("rule", list(COMBINES))
def test_every_rule_makes_of_files_what_it_makes_on_the_base(tiny, tmp_path, rule):
    pipe, folder = tiny
    out = tmp_path / "both.safetensors"
    files = {folder / "cat.safetensors": 0.7, folder / "ink.safetensors": 0.4}
    report = combine_files(files, out, method=rule, base=pipe)
    on = studio.combine(pipe, {"cat": 0.7, "ink": 0.4}, method=rule, name=f"on-{rule}")
    try:
        assert same(out, pipe, f"on-{rule}")
        assert (report.error, report.parameters, report.left) == (on.error, on.parameters, on.left)
        assert report.conflict.facts()["blocks"] == on.conflict.facts()["blocks"]
        assert report.suggestions == on.suggestions
    finally:
        studio.detach(pipe, f"on-{rule}")


def test_other_kinds_and_blocks_too(tiny, tmp_path):
    pipe, folder = tiny
    out = tmp_path / "all.safetensors"
    blend = {
        "cat": studio.Strength(0.7, blocks={"unet.up_blocks.*": 0.5}, text_encoder=0.3), "fox": -0.5, "owl": 1.0,
    }  # fmt: skip
    parents = [Parent(folder / f"{name}.safetensors", strength, name) for name, strength in blend.items()]
    report = combine_files(parents, out, base=pipe)
    studio.combine(pipe, blend, name="all")
    try:
        assert report.method == "full" and same(out, pipe, "all")
    finally:
        studio.detach(pipe, "all")


def made(tmp_path, family, name, config, part, format="kohya", seed=0):
    """A file of a public model, written without its weights."""
    base = outline(family, part)
    drawn = studio.LoRA(rank=config.rank, targets=config.targets) if config.method == "dora" else config
    studio.attach(base, drawn, name="made")  # a start from weights would ask for them
    generator, layers = torch.Generator().manual_seed(seed), {}
    for key, tensor in studio.state(base, "made").items():
        path, _, one = key.rpartition(".")
        layers.setdefault(path, {})[one] = torch.randn(tensor.shape, generator=generator) * 0.02
    for tensors in layers.values() if config.method == "dora" else ():
        tensors["magnitude"] = torch.ones(len(tensors["up"]))
    studio.detach(base)
    file = tmp_path / f"{name}.safetensors"
    loose = Loose(file=file, model=base, base=family, name="default", format=format, config=config, layers=layers,
                  facts={})  # fmt: skip
    return write_loose(loose, file, format=format)


def test_files_of_a_public_model_need_no_base(tmp_path):
    """SDXL: one file on the U-Net alone in kohya's names, one on the text encoder too; the sum is the formula's."""
    one = made(tmp_path, "sdxl", "one", studio.LoRA(rank=4, alpha=2, targets=SDXL[:1]), ["unet"])
    two = made(tmp_path, "sdxl", "two", studio.LoRA(rank=2, targets=SDXL), ["unet", "text_encoder"], seed=1)
    out = tmp_path / "both.safetensors"
    report = combine_files({one: 0.8, two: -0.5}, out)
    assert dict(report.ranks) == {6: 8, 2: 2} and list(report.parents) == ["one", "two"]
    first, second, both = (read_loose(file) for file in (one, two, out))
    for path, tensors in both.layers.items():
        up, down = tensors["up"].double(), tensors["down"].double()
        expected = -0.5 * second.layers[path]["up"].double() @ second.layers[path]["down"].double()
        if path in first.layers:
            expected = expected + 0.8 * 2 / 4 * first.layers[path]["up"].double() @ first.layers[path]["down"].double()
        assert (up @ down - expected).norm() < 1e-6 * expected.norm()
    facts = inspect(out).facts
    told = json.loads(facts["combined"])
    assert [parent["file_sha256"] for parent in told["parents"].values()] == [file_hash(one), file_hash(two)]
    assert told["rule"] == "exact" and told["parents"]["one"]["file"] == "one.safetensors"
    assert facts["modelspec.merged_from"] == "one, two"
    assert told["parents"]["two"]["strength"] == -0.5 and len(told["parents"]["two"]["sha256"]) == 64


def test_content_and_style_are_the_live_blend_and_what_each_is_alone(tmp_path):
    """B-LoRA: two parts of SDXL that share no layer, so that the union is exact."""
    cat = made(tmp_path, "sdxl", "cat", studio.LoRA(rank=4, targets=SDXL[:1]), ["unet"])
    ink = made(tmp_path, "sdxl", "ink", studio.LoRA(rank=2, targets=SDXL[:1]), ["unet"], seed=1)
    out = tmp_path / "both.safetensors"
    report = combine_files([Parent(cat, blocks="content"), Parent(ink, 0.9, blocks="B-LoRA-style")], out)
    assert report.sites == 4 and dict(report.ranks) == {4: 2, 2: 2} and report.cosines["cat", "ink"] == 0.0
    first, second, both = (read_loose(file) for file in (cat, ink, out))
    assert {".".join(path.split(".")[:5]) for path in both.layers} == {
        f"unet.up_blocks.0.attentions.{n}" for n in (0, 1)
    }
    for path, tensors in both.layers.items():
        own, strength = (first, 1.0) if ".attentions.0." in path else (second, 0.9)
        expected = strength * own.layers[path]["up"].double() @ own.layers[path]["down"].double()
        assert (tensors["up"].double() @ tensors["down"].double() - expected).norm() < 1e-6 * expected.norm()
    told = json.loads(inspect(out).facts["combined"])["parents"]
    assert told["cat"]["blocks"]["unet.up_blocks.0.attentions.1.*"] == 0.0


@pytest.mark.parametrize("config", [
    studio.LoHa(rank=2, targets=SDXL[:1]), studio.LoKr(rank=2, targets=SDXL[:1]), studio.Full(targets=SDXL[:1]),
], ids=lambda config: config.method)  # fmt: skip
def test_what_is_no_pair_needs_no_base_either(tmp_path, config):
    one = made(tmp_path, "sdxl", "one", config, ["unet"])
    two = made(tmp_path, "sdxl", "two", studio.LoRA(rank=2, targets=SDXL[:1]), ["unet"], seed=1)
    report = combine_files({one: 0.5, two: 1.0}, tmp_path / "both.safetensors")
    assert report.sites == 8 and 0 < report.kept <= 1


@pytest.mark.parametrize("config", [
    studio.DoRA(rank=2, targets=SDXL[:1]), studio.OFT(block_size=32, targets=SDXL[:1]), studio.IA3(targets=SDXL[:1]),
    studio.GLoRA(rank=2, targets=SDXL[:1]),
], ids=lambda config: config.method)  # fmt: skip
def test_what_is_made_of_the_weights_asks_for_the_base(tmp_path, config):
    one = made(tmp_path, "sdxl", "one", config, ["unet"], format="diffusers")
    with pytest.raises(DoesNotFit, match=f"what {config.method} changes .* --base BASE"):
        combine_files({one: 0.5}, tmp_path / "both.safetensors")
    assert not (tmp_path / "both.safetensors").exists()


def test_what_is_refused(tmp_path):
    one = made(tmp_path, "sdxl", "one", studio.LoRA(rank=2, targets=SDXL[:1]), ["unet"])
    other = made(tmp_path, "sd1", "other", studio.LoRA(rank=2, targets="attention"), ["unet"])
    out = tmp_path / "both.safetensors"
    with pytest.raises(DoesNotFit, match="one.safetensors is for sdxl and other.safetensors for sd1"):
        combine_files({one: 1.0, other: 1.0}, out)
    with pytest.raises(NoEffect, match="one.safetensors changes nothing"):
        second = made(tmp_path, "sdxl", "second", studio.LoRA(rank=2, targets=SDXL[:1]), ["unet"])
        combine_files({one: 0.0, second: 1.0}, out)
    with pytest.raises(BadConfig, match="matches none of its layers"):
        combine_files([Parent(one, studio.Strength(blocks={"mid_blok.*": 0.5}))], out)
    with pytest.raises(DoesNotFit, match="differs by moment"):
        combine_files({one: studio.Strength(schedule=[(0, 0), (1, 1)])}, out)
    with pytest.raises(BadConfig, match="two adapters are called 'one'"):
        combine_files([Parent(one), Parent(one)], out)
    with pytest.raises(BadConfig, match="a table of strengths, .*, and blocks too"):
        combine_files([Parent(one, {"unet": 0.5}, blocks="OUTALL")], out)
    with pytest.raises(BadConfig, match="family='sdxl' and a base are given"):
        combine_files([Parent(one)], out, family="sdxl", base=outline("sdxl"))
    with pytest.raises(BadFile, match="is there already"):
        combine_files({one: 1.0}, one)
    with pytest.raises(BadConfig, match="takes adapter files"):
        combine_files({}, out)
    assert not out.exists() and not adapters(build("sdxl"))


def test_the_hash_of_a_parent_is_of_the_file_that_was_read(tmp_path):
    """A folder may hold more files than that of the adapter."""
    one = made(tmp_path, "sdxl", "one", studio.LoRA(rank=2, targets=SDXL[:1]), ["unet"])
    folder = tmp_path / "folder"
    folder.mkdir()
    read = one.rename(folder / "pytorch_lora_weights.safetensors")
    (folder / "a.safetensors").write_bytes(b"something else")
    out = tmp_path / "both.safetensors"
    combine_files([Parent(folder, name="one")], out)
    said = json.loads(inspect(out).facts["combined"])
    assert said["parents"]["one"]["file_sha256"] == file_hash(read)
