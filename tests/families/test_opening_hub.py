"""Bases, adapters and language bases from a hub that runs here: by id, from its cache, and what goes wrong."""

from __future__ import annotations

import socket

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load, save, save_file

import original_names
import studio
from hub_server import Repository, files_of, serving
from studio.errors import BadFile, UnknownName
from studio.families import open_base
from studio.families.language import open_language_base
from studio.pipelines import ImagePipeline
from studio.pipelines.naming import adapter_file, free_name
from tiny_pipelines import build

CONNECT = socket.socket.connect


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny pipeline with what a repository has besides."""
    folder = tmp_path_factory.mktemp("repositories") / "tiny"
    build("sdxl").save_pretrained(folder)
    (folder / "README.md").write_text("# tiny")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors").write_bytes(b"others")
    (folder / "sdxl.safetensors").write_bytes(b"everything in one file")
    (folder / "text_encoder" / "model.fp16.safetensors").write_bytes(b"a variant")
    return folder


@pytest.fixture
def hub(folder, tmp_path, monkeypatch):
    """A hub with one repository, asked by the library of this process, whose cache is empty."""
    with serving() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_URL_HOSTS", constants.HF_URL_HOSTS | {"127.0.0.1"}, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "HF_HUB_OFFLINE", "HF_TOKEN"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.lower(), raising=False)
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        monkeypatch.setattr(socket.socket, "connect", here_alone)
        hub.repositories["owner/tiny"] = Repository({"main": files_of(folder)})
        yield hub


def here_alone(self, address):
    assert self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1"), f"{address} was asked"
    return CONNECT(self, address)


def test_a_base_by_its_id(hub, folder, monkeypatch):
    base = open_base("owner/tiny")
    assert (base.id, base.family.name, base.hash) == ("owner/tiny", "sdxl", open_base(folder).hash)
    assert hub.given() == ["diffusion_pytorch_model.safetensors", "model.safetensors"]
    assert not hub.given(".bin") and not hub.given(".md")
    hub.asked.clear()
    assert open_base("owner/tiny").hash == base.hash  # the cache is enough
    assert open_base("owner/tiny", offline=True).hash == base.hash
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert open_base("owner/tiny@main").hash == base.hash
    assert hub.asked == []


def test_the_id_is_what_a_record_says(hub):
    pipe = ImagePipeline.open("owner/tiny")
    (image,) = pipe.generate("a dog", seeds=[0], steps=1, width=64, height=64)
    assert '"owner/tiny"' in image.info["studio"]


def test_a_revision_a_folder_and_a_file(hub, folder):
    files = files_of(folder)
    hub.repositories["owner/many"] = Repository(
        {"main": {f"bases/xl/{name}": data for name, data in files.items()}, "v2": files}
    )
    assert open_base("owner/many/bases/xl").family.name == open_base("owner/many@v2").family.name == "sdxl"
    with pytest.raises(BadFile, match=r"on the hub has no folder 'bases/xxl' \(it holds bases\)"):
        open_base("owner/many/bases/xxl")
    with pytest.raises(BadFile, match="has no file 'dog.safetensors'"):
        open_base("owner/many/dog.safetensors")
    with pytest.raises(BadFile, match="sdxl.safetensors .*not a safetensors file"):
        open_base("owner/many@v2/sdxl.safetensors")


def test_what_is_missing_of_a_cached_base_is_downloaded(hub):
    from huggingface_hub import hf_hub_download

    hf_hub_download("owner/tiny", "model_index.json")
    with pytest.raises(BadFile, match="what is in the hub's cache is not whole: the weights of its .* leave out --off"):
        open_base("owner/tiny", offline=True)
    assert open_base("owner/tiny").family.name == "sdxl"


def refused(error, words, name, **settings):
    with pytest.raises(error, match=words) as caught:
        open_base(name, **settings)
    assert "\n" not in str(caught.value)


ANSWERS = {
    "owner/gated": (
        BadFile,
        "gives owner/gated only to those who have accepted its terms: do so at http.*hf auth login",
    ),
    "owner/hidden": (UnknownName, "shows no repository owner/hidden.*a private one, log in"),
    "owner/tinny": (UnknownName, "no repository owner/tinny; did you mean 'owner/tiny', which is there"),
    "owner/tiny@v9": (UnknownName, "owner/tiny has no revision 'v9'"),
    "owner/pickled": (BadFile, "on the hub has the weights of its unet as .*bin alone, and pickles"),
}
AWAY = {
    "owner/tinny": "no repository owner/tinny in the hub's cache .*did you mean 'owner/tiny'",
    "owner/tiny@v9": "no revision 'v9' of owner/tiny in the hub's cache",
    "owner/absent": "no file or folder 'owner/absent', and no repository .*leave out --offline and HF_HUB_OFF",
}


def test_one_sentence_for_each_answer_of_the_hub(hub, folder, monkeypatch):
    files = files_of(folder)
    hub.repositories["owner/gated"] = Repository({"main": files}, gated=True)
    hub.repositories["owner/hidden"] = Repository({"main": files}, hidden=True)
    plain = {name: data for name, data in files.items() if name != "unet/diffusion_pytorch_model.safetensors"}
    hub.repositories["owner/pickled"] = Repository({"main": plain})
    open_base("owner/tiny")
    for name, (error, words) in ANSWERS.items():
        refused(error, words, name)
    asked = list(hub.asked)
    for name, words in AWAY.items():
        refused(UnknownName, words, name, offline=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name, words in AWAY.items():
        refused(UnknownName, words, name)
    assert hub.asked == asked


def test_a_hub_that_is_not_there(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    refused(BadFile, "owner/tiny is not in the hub's cache, and http://127.0.0.1:9 cannot be reached", "owner/tiny")


def test_a_download_that_breaks_off_goes_on_at_the_next_call(hub):
    repository = hub.repositories["owner/tiny"]
    repository.short.add("unet/diffusion_pytorch_model.safetensors")
    refused(BadFile, "the download of owner/tiny broke off .*call again", "owner/tiny")
    refused(BadFile, "what is in the hub's cache is not whole", "owner/tiny", offline=True)
    repository.short.clear()
    repository.cut.add("unet/diffusion_pytorch_model.safetensors")  # it goes on by itself where a connection ends
    assert open_base("owner/tiny").family.name == "sdxl"
    assert not repository.cut


def test_a_path_that_exists_is_not_asked_of_the_hub(hub, folder, tmp_path, monkeypatch):
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "tiny").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    assert open_base("owner/tiny").folder.samefile(folder)
    assert hub.asked == []


def test_adapters_by_their_ids(hub, tmp_path):
    pipe = ImagePipeline(open_base(build("sdxl")))
    studio.attach(pipe, studio.LoRA(rank=2), name="dog")
    for _, parameter in studio.families.named_parameters(pipe.base.pipe.unet):
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    file = studio.save(pipe, tmp_path / "dog.safetensors", name="dog")
    data = file.read_bytes()
    hub.repositories["owner/dog"] = Repository(
        {"main": {"pytorch_lora_weights.safetensors": data, "other.safetensors": b""}}
    )
    hub.repositories["owner/dogs"] = Repository(
        {"main": {"a.safetensors": data, "b.safetensors": data, "readme.md": b""}}
    )
    fresh = ImagePipeline(open_base(build("sdxl")))
    assert fresh.load("owner/dog").method == fresh.load("owner/dogs/b.safetensors", name="b").method == "lora"
    assert list(fresh.adapters) == ["dog", "b"]
    with pytest.raises(BadFile, match="holds 2 safetensors files; name one.*a.safetensors, b.safetensors"):
        fresh.load("owner/dogs")
    with pytest.raises(BadFile, match="what is in the hub's cache holds 2 safetensors files"):
        adapter_file("owner/dogs", offline=True)
    hub.asked.clear()
    assert free_name(adapter_file("owner/dog"), "", []) == "dog"
    assert adapter_file("owner/dogs/b.safetensors").read_bytes() == data
    assert hub.asked == []


def test_language_bases_by_their_ids(hub, tiny_language):
    files = files_of(tiny_language)
    hub.repositories["owner/words"] = Repository(
        {"main": {**files, "pytorch_model.bin": b"a pickle", "onnx/model.bin": b""}}
    )
    base = open_language_base("owner/words")
    assert (base.id, base.hash) == ("owner/words", open_language_base(tiny_language).hash)
    assert not hub.given(".bin")
    assert open_language_base("owner/words", offline=True).hash == base.hash
    with pytest.raises(UnknownName, match="no repository owner/worlds in the hub's cache .*'owner/words'"):
        open_language_base("owner/worlds", offline=True)


@pytest.mark.parametrize("quiet", [True, False])
def test_a_download_shows_its_progress_unless_it_is_told_not_to(hub, capfd, monkeypatch, quiet):
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", str(int(quiet)))
    open_base("owner/tiny")
    assert bool("%|" in capfd.readouterr().err) is not quiet


def test_the_command_line_takes_ids_and_stays_away_from_the_hub(hub, tmp_path):
    from click.testing import CliRunner

    from studio.cli import main

    words = ["generate", "owner/tiny", "a dog", "--steps", "1", "--resolution", "64", "-o", str(tmp_path / "out")]
    away = CliRunner().invoke(main, [*words, "--offline"])
    assert (away.exit_code, hub.asked) == (2, [])
    assert "no repository owner/tiny in the hub's cache" in away.stderr
    done = CliRunner().invoke(main, [*words, "--quiet"])
    assert (done.exit_code, done.stderr, done.stdout) == (0, "", "")
    assert (tmp_path / "out" / "0000.png").is_file()
    assert CliRunner().invoke(main, [*words, "--offline"]).exit_code == 0


def test_a_training_says_the_id_and_starts_from_one(hub, photos, tmp_path):
    from studio.trainers import DreamBooth, train

    task = DreamBooth(
        base="owner/tiny", instance_images=photos, instance_prompt="a photo of sks dog", prior="none", resolution=64,
        preview_prompts=(),
    )  # fmt: skip
    settings = {"steps": 1, "batch_size": 1, "quiet": True, "cache": str(tmp_path / "cache")}
    run = train(task, adapter=studio.LoRA(rank=2), output=tmp_path / "first", **settings)
    assert 'base = "owner/tiny"' in (run.folder / "run.toml").read_text()
    hub.repositories["owner/dog"] = Repository({"main": {"dog.safetensors": run.adapter.read_bytes()}})
    again = train(task, adapter="owner/dog", output=tmp_path / "second", **settings)
    assert again.adapter.is_file()


def written(state, file):
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in state.items()}, file)
    return file


def test_a_checkpoint_of_one_file_takes_its_configs_from_an_id_and_no_weights(hub, folder, tmp_path):
    file = written(original_names.sdxl(build("sdxl")), tmp_path / "model.safetensors")
    base = open_base(file, config_of="owner/tiny")
    assert (base.family.name, hub.given()) == ("sdxl", [])
    hub.repositories["owner/one"] = Repository({"main": {"model.safetensors": file.read_bytes()}})
    assert open_base("owner/one/model.safetensors", config_of="owner/tiny", offline=False).hash == base.hash
    with pytest.raises(BadFile, match="no model_index.json .*named with its file: .../model.safetensors"):
        open_base("owner/one")


def test_a_denoiser_alone_takes_what_it_lacks_from_an_id(hub, tmp_path):
    unet = dict(original_names.under("model.diffusion_model.", original_names.ldm_unet(build("sdxl").unet)))
    file = written(unet, tmp_path / "unet.safetensors")
    base = open_base(file, config_of="owner/tiny")
    asked = [line for line in hub.asked if line.startswith("GET") and line.endswith(".safetensors")]
    assert sorted(line.split("/")[-2] for line in asked) == ["text_encoder", "text_encoder_2", "vae"]
    assert set(base.weights) == {"", "text_encoder", "text_encoder_2", "vae"}


def test_a_cached_variant_does_not_stand_for_the_whole_weights(hub, folder):
    """The fp16 variant serves who asked for it; whoever asks for more gets more."""
    files = files_of(folder)
    for name in [name for name in files if name.endswith("model.safetensors")]:
        half = {key: part.half() for key, part in load(files[name]).items()}
        files[name.replace("model.safetensors", "model.fp16.safetensors")] = save(half)
    hub.repositories["owner/both"] = Repository({"main": files})
    half = open_base("owner/both", dtype="fp16")
    assert all(".fp16." in file.name for own in half.weights.values() for file in own)
    assert open_base("owner/both", dtype="fp16", offline=True).hash == half.hash
    with pytest.raises(BadFile, match="holds its fp16 variant alone, which --dtype fp16 takes; leave out --offline"):
        open_base("owner/both", offline=True)
    assert not any(".fp16." in file.name for own in open_base("owner/both").weights.values() for file in own)
