"""Networks of LyCORIS on whole pipelines, as kohya's trainer makes and saves them: the U-Net and every text encoder.

Each is randomised, saved under kohya's names, and loaded into the same pipeline: it draws the picture that LyCORIS'
own network draws.
"""

from __future__ import annotations

import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

import studio
from tests.support.tiny_pipelines import build, run

kohya = pytest.importorskip("lycoris.kohya")
logging.getLogger("LyCORIS").disabled = True

# the trainer's usual one names the layers of time twice on a U-Net of diffusers, and refuses them
PRESET = """
enable_conv = true
unet_target_module = ["Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D"]
unet_target_name = ["conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"]
text_encoder_target_module = ["CLIPAttention", "CLIPMLP"]
"""
ALGORITHMS = {
    "locon": {"algo": "locon"},
    "locon-tucker": {"algo": "locon", "use_tucker": True},
    "locon-norms": {"algo": "locon", "train_norm": True},
    "locon-decomposed": {"algo": "locon", "dora_wd": True},
    "locon-by-inputs": {"algo": "locon", "dora_wd": True, "wd_on_output": False},
    "loha": {"algo": "loha"},
    "loha-tucker": {"algo": "loha", "use_tucker": True},
    "loha-decomposed": {"algo": "loha", "dora_wd": True},
    "lokr": {"algo": "lokr", "factor": 2},
    "lokr-tucker": {"algo": "lokr", "factor": 2, "use_tucker": True, "network_dim": 1, "conv_dim": 1},
    "lokr-whole": {"algo": "lokr", "factor": 4, "full_matrix": True},
    "ia3": {"algo": "ia3"},
    "full": {"algo": "full"},
    "glora": {"algo": "glora"},
    "diag-oft": {"algo": "diag-oft"},
    "boft": {"algo": "boft", "network_dim": 2, "conv_dim": 2},
}
QUICK = (("sdxl", "locon"), ("sd1", "diag-oft"), ("sdxl", "locon-norms"))
CASES = [
    case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow)
    for case in ((kind, algorithm) for kind in ("sd1", "sdxl") for algorithm in ALGORITHMS)
    if case != ("sdxl", "boft")  # which cuts no layer of 24 outputs
]


def trained(kind, options, preset):
    """A pipeline that LyCORIS' network acts on, away from its start, and what its trainer saves."""
    pipe = build(kind)
    encoders = [pipe.text_encoder, pipe.text_encoder_2] if kind == "sdxl" else pipe.text_encoder
    preset.write_text(PRESET)
    chosen = {
        "network_dim": 4,
        "network_alpha": 2.0,
        "conv_dim": 4,
        "conv_alpha": 2.0,
        "preset": str(preset),
        **options,
    }
    network = kohya.create_network(
        1.0, chosen.pop("network_dim"), chosen.pop("network_alpha"), None, encoders, pipe.unet, **chosen
    )
    network.apply_to(encoders, pipe.unet, True, True)
    draws = torch.Generator().manual_seed(1)
    whole = 0.02 if options["algo"] in ("full", "ia3") else 0.1
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(whole * torch.randn(parameter.shape, generator=draws))
    network.eval()
    return pipe, {key: tensor.detach().clone().contiguous() for key, tensor in network.state_dict().items()}


@pytest.mark.parametrize(("kind", "algorithm"), CASES)
def test_a_pipeline_draws_what_its_own_network_draws(kind, algorithm, tmp_path):
    theirs, tensors = trained(kind, ALGORITHMS[algorithm], tmp_path / "preset.toml")
    wanted = torch.as_tensor(run(theirs, kind))
    save_file(tensors, tmp_path / "a.safetensors")
    pipe = build(kind)
    base = torch.as_tensor(run(pipe, kind))
    report = studio.load(pipe, tmp_path / "a.safetensors")
    assert set(report.applied) == set(load_file(tmp_path / "a.safetensors")) and not report.ignored
    encoders = {"sd1": {"text_encoder"}, "sdxl": {"text_encoder", "text_encoder_2"}}[kind]
    trains_encoders = any(key.startswith("lora_te") for key in tensors)
    assert {path.partition(".")[0] for path in report.sites} == {"unet"} | (encoders if trains_encoders else set())
    found = torch.as_tensor(run(pipe, kind))
    assert (found - wanted).norm() <= 1e-5 * wanted.norm()
    assert (base - wanted).norm() > 1e-3 * wanted.norm()
