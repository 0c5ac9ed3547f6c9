"""Files that LyCORIS wrote, of every algorithm that it has: here they give what its own network gives."""

from __future__ import annotations

import logging

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import studio

lycoris = pytest.importorskip("lycoris")
logging.getLogger("LyCORIS").disabled = True

# but for dylora, whose network draws a rank at every call, at rest too; its files are those of a LoRA
ALGORITHMS = {
    "locon": {"algo": "locon"},
    "locon-tucker": {"algo": "locon", "use_tucker": True},
    "locon-stabilized": {"algo": "locon", "rs_lora": True},
    "loha": {"algo": "loha"},
    "loha-tucker": {"algo": "loha", "use_tucker": True},
    "lokr": {"algo": "lokr", "factor": 2},
    "lokr-whole": {"algo": "lokr", "linear_dim": 100000, "conv_dim": 100000},
    "lokr-both": {"algo": "lokr", "factor": 4, "decompose_both": True, "linear_dim": 1, "conv_dim": 1},
    "lokr-tucker": {"algo": "lokr", "factor": 2, "use_tucker": True, "linear_dim": 1, "conv_dim": 1},
    "locon-decomposed": {"algo": "locon", "dora_wd": True},
    "locon-by-inputs": {"algo": "locon", "dora_wd": True, "wd_on_output": False},
    "loha-decomposed": {"algo": "loha", "dora_wd": True},
    "loha-by-inputs": {"algo": "loha", "dora_wd": True, "wd_on_output": False},
    "lokr-decomposed": {"algo": "lokr", "factor": 2, "dora_wd": True},
    "lokr-by-inputs": {"algo": "lokr", "factor": 2, "linear_dim": 2, "dora_wd": True, "wd_on_output": False},
    "ia3": {"algo": "ia3"},
    "full": {"algo": "full"},
    "glora": {"algo": "glora"},
    "diag-oft": {"algo": "diag-oft"},
    "diag-oft-rescaled": {"algo": "diag-oft", "rescaled": True},
    "boft": {"algo": "boft"},
}


class Net(nn.Module):
    """Layers of each kind that LyCORIS adapts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.point = nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 16, 1, bias=False)
        self.wide, self.square = nn.Linear(16, 32), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.point(torch.tanh(self.conv(x))))
        return self.square(torch.tanh(self.wide(h.flatten(2).mT)))


def network(options: dict[str, object]) -> tuple[nn.Module, dict[str, torch.Tensor], torch.Tensor]:
    """LyCORIS' network on a new net, away from its start: the net, its tensors and what it computes."""
    net = Net()
    chosen = {"linear_dim": 4, "linear_alpha": 2.0, "conv_dim": 4, "conv_alpha": 2.0, "dropout": 0.0, **options}
    lycoris.LycorisNetwork.apply_preset({"target_name": ["conv", "point", "wide", "square"]})
    made = lycoris.create_lycoris(net, 1.0, **chosen)
    made.apply_to()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if options["algo"] != "full" or not name.endswith(("weight", "bias")):
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
            else:  # it holds the whole weight by now
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        made.eval()
        expected = net(sample())
    return net, {key: tensor.detach().clone().contiguous() for key, tensor in made.state_dict().items()}, expected


def sample() -> torch.Tensor:
    return torch.randn(2, 8, 5, 5, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_file_gives_what_its_own_network_gives(name, tmp_path):
    _, tensors, expected = network(ALGORITHMS[name])
    save_file(tensors, tmp_path / "a.safetensors")
    net = Net()
    base = net(sample())
    report = studio.load(net, tmp_path / "a.safetensors")
    assert not report.ignored and set(report.applied) == set(tensors)
    found = net(sample())
    assert torch.allclose(found, expected, atol=1e-5), (found - expected).abs().max()
    assert (base - expected).abs().max() > 1e-2
    # live == baked, and saved in the same format it holds the same tensors
    studio.bake(net)
    assert torch.allclose(net(sample()), expected, atol=1e-5)
    studio.unbake(net)
    studio.save(net, tmp_path / "b.safetensors", format="kohya")
    other = Net()
    studio.load(other, tmp_path / "b.safetensors")
    assert torch.allclose(other(sample()), expected, atol=1e-5)


def test_a_file_of_tlora_does_not_say_what_it_changes_and_is_refused(tmp_path):
    """``ΔW = s (P diag(λ) Q − P₀ diag(λ₀) Q₀)``: the second term, of W's singular directions, is not in the file."""
    from lycoris.modules.tlora import TLoraModule

    layer, draws = nn.Linear(16, 32), torch.Generator().manual_seed(1)
    starts = [
        TLoraModule("lycoris_wide", layer, lora_dim=4, alpha=2.0, sig_type=sort) for sort in ("principal", "last")
    ]
    trained = [0.2 * torch.randn(parameter.shape, generator=draws) for parameter in starts[0].parameters()]
    changes, files = [], []
    with torch.no_grad():
        for module in starts:
            for parameter, value in zip(module.parameters(), trained, strict=True):
                parameter.copy_(value)
            changes.append(module.get_diff_weight()[0])
            files.append({f"lycoris_wide.{key}": tensor.clone() for key, tensor in module.state_dict().items()})
    assert files[0].keys() == files[1].keys() and all(torch.equal(files[0][key], files[1][key]) for key in files[0])
    assert (changes[0] - changes[1]).norm() > 0.1 * changes[0].norm()
    save_file(files[0], tmp_path / "a.safetensors")
    with pytest.raises(studio.StudioError, match="T-LoRA, which subtracts its start and leaves that out of its files"):
        studio.load(Net(), tmp_path / "a.safetensors")


def test_the_first_form_of_glora_is_told_by_its_shapes(tmp_path):
    """``W a2 a1 + b2 b1``, a1 ``(r, n)``: the same change as the present form with the names exchanged."""
    _, tensors, expected = network(ALGORITHMS["glora"])
    linear = {key: tensor for key, tensor in tensors.items() if "wide" in key or "square" in key}
    other = {"a1": "a2", "a2": "a1", "b1": "b2", "b2": "b1"}
    older = {}
    for key, tensor in linear.items():
        module, _, part = key.partition(".")
        head = part.partition(".")[0]
        older[f"{module}.{other[head]}.weight" if head in other else key] = tensor
    outputs = []
    for name, content in (("now", linear), ("then", older)):
        save_file(content, tmp_path / f"{name}.safetensors")
        net = Net()
        studio.load(net, tmp_path / f"{name}.safetensors")
        outputs.append(net(sample()))
    assert torch.equal(*outputs) and not torch.allclose(outputs[0], Net()(sample()), atol=1e-2)
