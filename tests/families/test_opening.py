"""Bases from folders: every family's, whole or damaged; which type they are read in; their hash; no network."""

from __future__ import annotations

import json
import logging
import socket

import pytest
import torch
from safetensors.torch import load_file, save_file

from studio.errors import BadConfig, BadFile, DoesNotFit, UnknownName
from studio.families import FAMILIES, open_base
from studio.families.language import open_language_base
from studio.families.opening import hashing
from studio.families.opening.dtype import SMALL, usual_dtype
from studio.families.opening.hashing import files_hash, weights_hash
from studio.families.opening.ids import hub_id
from studio.families.opening.selection import weight_files
from studio.pipelines.request import Request
from studio.pipelines.sample import draw
from tiny_pipelines import BUILDERS, FAMILY, PROMPT, build

CPU = torch.device("cpu")
MILLION = 1_000_000


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Whoever opens a connection fails, and nothing else keeps anybody from it."""

    def refused(*given):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


def copy_of(folder, place):
    import shutil

    shutil.copytree(folder, place)
    return place


def picture(base):
    side = 32 * max(base.multiple // 32, 1)
    request = Request(
        prompt=PROMPT, seed=3, steps=2, guidance=2.0 if base.defaults.negative else 1.0, width=2 * side, height=side,
        embedded=base.defaults.embedded,
    )  # fmt: skip
    return draw(base, [request], rows=1)[0]


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_folder_draws_what_its_pipeline_draws(folders, kind):
    base = open_base(folders(kind))
    assert (base.family.name, base.id, base.folder) == (FAMILY[kind], kind, folders(kind))
    # weights are mapped where they lie in the file, and kernels that begin elsewhere round elsewhere
    torch.testing.assert_close(picture(base), picture(open_base(build(kind))), rtol=0, atol=1e-5)
    assert not any(part.training for part in base.pipe.components.values() if isinstance(part, torch.nn.Module))


def pickled(folder):
    """The folder with one component's weights as a pickle alone."""
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(file), file.with_suffix(".bin"))
    file.unlink()


def foreign(folder):
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "KandinskyPipeline"}))


def unindexed(folder):
    (folder / "model_index.json").unlink()


def weightless(folder):
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()


def sharded(folder):
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.rename(file.with_name("diffusion_pytorch_model-00001-of-00002.safetensors"))


def shortened(folder):
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:5_000])


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (
            pickled,
            BadFile,
            r"weights of its unet as unet/diffusion_pytorch_model.bin alone, and pickles can run .*convert them once",
        ),
        (foreign, DoesNotFit, "KandinskyPipeline, which the studio does not know; it opens .*FluxPipeline"),
        (unindexed, BadFile, r"no diffusers pipeline: it has no model_index.json \(it holds "),
        (weightless, BadFile, "not whole: the weights of its vae are missing"),
        (sharded, BadFile, "not whole: of the weights of its unet some files are missing"),
        (shortened, BadFile, "cannot be opened as a StableDiffusionXLPipeline: .*truncated"),
    ],
)
def test_a_damaged_folder_is_refused_in_a_sentence(folders, tmp_path, damage, error, words):
    folder = copy_of(folders("sdxl"), tmp_path / "copy")
    damage(folder)
    with pytest.raises(error, match=words) as caught:
        open_base(folder)
    assert "\n" not in str(caught.value)


def test_the_fp16_variant_is_read_where_it_is_asked_for_or_alone(folders, tmp_path):
    folder = copy_of(folders("sdxl"), tmp_path / "copy")
    for file in list(folder.glob("*/*.safetensors")):
        stem = file.name.removesuffix(".safetensors")
        save_file(
            {name: part.half() for name, part in load_file(file).items()}, file.with_name(f"{stem}.fp16.safetensors")
        )
    named = {name: {file.name for file in files} for name, files in open_base(folder, dtype="fp16").weights.items()}
    assert named["unet"] == {"diffusion_pytorch_model.fp16.safetensors"} and len(named) == 4
    assert {file.name for file in open_base(folder).weights["unet"]} == {"diffusion_pytorch_model.safetensors"}
    for file in folder.glob("*/*.safetensors"):
        if ".fp16." not in file.name:
            file.unlink()
    alone = open_base(folder)
    assert alone.weights["text_encoder"][0].name == "model.fp16.safetensors"
    assert alone.pipe.unet.dtype == torch.float32  # a small base on a CPU


def test_components_get_the_type_that_their_family_needs(folders):
    pipe = open_base(folders("sdxl"), dtype="fp16").pipe
    types = {pipe.unet.dtype, pipe.text_encoder.dtype, pipe.text_encoder_2.dtype}
    assert (types, pipe.vae.dtype) == ({torch.float16}, torch.float32)
    assert open_base(folders("sdxl"), dtype="bf16").pipe.vae.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("held", "asked", "dtype"),
    [
        ({torch.float16: MILLION}, None, torch.float32),  # small
        ({torch.float16: MILLION}, "auto", torch.float32),
        ({torch.float16: SMALL // 4 + 1}, None, torch.float16),
        ({torch.bfloat16: 12_000 * MILLION, torch.float32: 90 * MILLION}, None, torch.bfloat16),
        ({torch.float8_e4m3fn: 12_000 * MILLION}, None, torch.bfloat16),
        ({torch.float32: 12_000 * MILLION}, None, torch.float32),
        ({torch.float32: 12_000 * MILLION}, "auto", torch.float32),
        ({torch.float32: 12_000 * MILLION}, torch.bfloat16, torch.bfloat16),
        ({}, None, torch.float32),
    ],
)
def test_a_base_is_read_in_the_type_of_its_files_and_a_small_one_in_fp32(held, asked, dtype):
    assert usual_dtype(held, CPU, asked) == dtype


def test_a_device_that_lacks_a_type_gets_a_substitute(monkeypatch):
    monkeypatch.setattr("studio.families.opening.dtype.has_dtype", lambda dtype, device: dtype is torch.float16)
    monkeypatch.setattr("studio.device.has_dtype", lambda dtype, device: dtype is torch.float16)
    place = torch.device("meta")
    assert usual_dtype({torch.bfloat16: 1}, place) == torch.float16
    assert usual_dtype({torch.float32: 1}, place) == torch.float32
    assert usual_dtype({torch.float32: 1}, place, "auto") == torch.float16


def test_the_first_families_keep_the_hash_of_their_numbers(folders):
    for kind in ("sd1", "sd2"):
        base = open_base(folders(kind))
        assert base.hash == weights_hash(base.pipe) == open_base(build(kind)).hash
    assert {name for name, family in FAMILIES.items() if not family.hashes_files} == {"sd1", "sd2"}


def test_other_families_are_known_by_the_bytes_of_their_files(folders, tmp_path):
    """Neither how the tensors are spread nor how they are read matters; every bit of them does."""
    first = open_base(folders("sdxl"), dtype="fp16").hash
    assert first == open_base(folders("sdxl")).hash
    folder = copy_of(folders("sdxl"), tmp_path / "copy")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    names = sorted(tensors)
    parts = [file.with_name(f"diffusion_pytorch_model-0000{n}-of-00002.safetensors") for n in (1, 2)]
    for part, own in zip(parts, (names[:50], names[50:]), strict=True):
        save_file({name: tensors[name] for name in own}, part, metadata={"format": "pt"})
    where = {name: parts[name not in names[:50]].name for name in names}
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    file.with_name("diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    file.unlink()
    assert open_base(folder).hash == first
    tensors[names[7]].view(-1).view(torch.int32)[0] ^= 1
    save_file({name: tensors[name] for name in names[:50]}, parts[0], metadata={"format": "pt"})
    assert open_base(folder).hash != first


def test_the_hash_of_large_files_is_made_once(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("STUDIO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hashing, "KEPT", 1)
    weights = open_base(copy_of(folders("flux1"), tmp_path / "flux")).weights
    first = files_hash(weights)
    monkeypatch.setattr(hashing, "_made", lambda weights: "made anew")
    assert files_hash(weights) == first
    weights["vae"][0].write_bytes(weights["vae"][0].read_bytes())  # the same bytes at another time
    assert files_hash(weights) == "made anew"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("owner/name", ("owner/name", None, "")),
        ("owner/name/", ("owner/name", None, "")),
        ("owner/name@v1.0", ("owner/name", "v1.0", "")),
        ("owner/name@refs/pr/3/sub", ("owner/name", "refs/pr/3", "sub")),
        ("owner/name@main/sub/folder", ("owner/name", "main", "sub/folder")),
        ("owner/name/model.safetensors", ("owner/name", None, "model.safetensors")),
        *((text, None) for text in ("owner", "./a/b", "../a/b", "/a/b", "~/a", "a//b", "a/b/../c", "a/b.safetensors")),
        *((text, None) for text in ("a\\b", "C:/a", "a/b/./c", "ü/b", "a/b@", "a b/c", "", "a/..", "a/b\n")),
    ],
)
def test_ids_are_told_from_paths(text, meant):
    found = hub_id(text)
    assert (found and (found.repo, found.revision, found.inside)) == meant


def test_an_address_is_refused_with_what_to_give():
    with pytest.raises(UnknownName, match="is an address; give the hub id in it"):
        open_base("https://huggingface.co/owner/name")


def test_weights_of_other_kinds_beside_the_right_ones_do_not_matter():
    own = [f"unet/{name}" for name in ("model.bin", "model.non_ema.safetensors", "model.safetensors", "config.json")]
    assert weight_files(own, half=True, of="unet") == ["unet/model.safetensors"]


def test_configs_are_for_single_files(folders):
    with pytest.raises(BadConfig, match="leave it out"):
        open_base(folders("sdxl"), config_of=folders("sdxl"))
    with pytest.raises(BadConfig, match="the base is open: leave it out"):
        open_base(build("sd1"), config_of=folders("sd1"))


def test_a_language_base_on_this_machine_asks_nobody(tiny_language):
    assert open_language_base(tiny_language).id == tiny_language.name
    assert open_language_base("facts").id == "facts"


def test_a_language_base_with_pickled_weights_is_refused(tiny_language, tmp_path):
    folder = copy_of(tiny_language, tmp_path / "copy")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BadFile, match="has its weights as pytorch_model.bin alone, and pickles can run programs"):
        open_language_base(folder)


def test_a_cast_is_no_remark_on_the_screen(folders):
    said = []
    log, listener = logging.getLogger("diffusers"), logging.Handler()
    listener.emit = lambda record: said.append(record.getMessage())
    level = log.level
    log.addHandler(listener)
    log.setLevel(logging.WARNING)  # whatever other tests have left it at
    try:
        base = open_base(open_base(folders("sd1"), dtype="bf16"), dtype="fp32")
        assert base.pipe.unet.dtype == torch.float32 and said == []
        base.pipe.unet.to(torch.bfloat16)
        assert "should be kept in float32" in said[0], "diffusers' own remark, which the studio leaves out"
    finally:
        log.removeHandler(listener)
        log.setLevel(level)
