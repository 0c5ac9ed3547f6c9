"""Blends per sample: every row of a batch under its own, with bits that its neighbours do not change."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import studio
from studio.adapters import METHODS, Schedule, Strength
from studio.adapters.hosting.apart import SharedLayer
from studio.adapters.hosting.assembly import assembly_at
from studio.errors import BadConfig, DoesNotFit, UnknownName

LAYERS = {
    "linear": (lambda: nn.Linear(8, 12), lambda: torch.randn(4, 5, 8)),
    "conv": (lambda: nn.Conv2d(8, 16, 3, padding=1), lambda: torch.randn(4, 8, 5, 3)),
    "embedding": (lambda: nn.Embedding(8, 12), lambda: torch.randint(8, (4, 5))),
    "norm": (lambda: nn.LayerNorm(8), lambda: torch.randn(4, 5, 8)),
}
KINDS = {"linear": "linear", "conv": "conv", "embedding": "embedding", "norm": "norm"}
CASES = [(method, layer) for method in METHODS for layer in LAYERS if KINDS[layer] in METHODS[method].adapter.kinds]
BLENDS = [{"one": 0.7}, {}, {"two": -1.0, "one": 0.25}, {"one": 0.7}]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # threads that share a batch cut it in other places than between the rows
    yield
    torch.set_num_threads(before)


def shake(model, name, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in studio.state(model, name).values():
            if tensor.requires_grad:
                tensor += 0.3 * torch.randn(tensor.shape, generator=generator)


def adapted(layer, method="lora", **fields):
    torch.manual_seed(0)
    model = nn.Sequential(LAYERS[layer][0]())
    for seed, name in enumerate(("one", "two")):
        config = METHODS[method].example(targets=("0",), **fields)
        try:
            studio.attach(model, config, name=name, seed=seed)
        except DoesNotFit as error:
            pytest.skip(str(error))
        shake(model, name, seed)
    return model, LAYERS[layer][1]()


@torch.no_grad()
def together(model, x, blends):
    with studio.blended_samples(model, blends):
        return model(x)


# -- the values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "layer"), CASES)
def test_a_row_has_its_own_blend_and_the_bits_that_it_has_beside_others(method, layer):
    try:
        model, x = adapted(layer, method)
    except (studio.errors.UnsupportedLayer, BadConfig) as error:
        pytest.skip(str(error))
    mixed = together(model, x, BLENDS)
    with torch.no_grad():
        for row, own in enumerate(BLENDS):
            with studio.blended(model, own):
                alone = model(x[row : row + 1])[0]
            assert (mixed[row] - alone).abs().max() <= 1e-5 * alone.abs().max()
            assert torch.equal(together(model, x, [own] * 4)[row], mixed[row])
    assert torch.equal(together(model, x, [BLENDS[2], {}, *BLENDS[2:]])[2:], mixed[2:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rank", [1, 2, 5, 16])
@pytest.mark.parametrize("tokens", [1, 3, 16])
@pytest.mark.parametrize("width", [5, 33, 64])
def test_the_bits_of_a_row_do_not_depend_on_its_place(width, tokens, rank, dtype):
    net = nn.Sequential(nn.Linear(width, width + 2)).to(dtype)
    nn.init.zeros_(net[0].weight), nn.init.zeros_(net[0].bias)  # what is left is what the adapter changes
    for name in ("one", "two"):
        studio.attach(net, studio.LoRA(rank=min(rank, width), targets=("0",)), name=name)
        shake(net, name, len(name))
    row, seen = torch.randn(tokens, width).to(dtype), []
    for place in range(4):
        x = torch.randn(4, tokens, width).to(dtype)
        x[place] = row
        blends = [{"two": 0.5}] * 4
        blends[place] = {"one": 0.7, "two": 0.1}
        seen.append(together(net, x, blends)[place])
    assert seen[0].abs().max() > 0
    assert all(torch.equal(seen[0], other) for other in seen)


@pytest.mark.parametrize("grouped", [1, 2])
def test_convolutions_do_not_either(grouped):
    net = nn.Sequential(nn.Conv2d(6, 10, 3, padding=1, groups=grouped))
    nn.init.zeros_(net[0].weight), nn.init.zeros_(net[0].bias)
    studio.attach(net, studio.LoRA(rank=3, targets=("0",)), name="one")
    shake(net, "one", 0)
    row, seen = torch.randn(6, 5, 7), []
    for place in range(3):
        x = torch.randn(3, 6, 5, 7)
        x[place] = row
        seen.append(together(net, x, [{"one": 0.7}] * 3)[place])
    assert all(torch.equal(seen[0], other) for other in seen)


def test_several_rows_of_a_sample_have_its_blend():
    model, x = adapted("linear")
    with torch.no_grad(), studio.blended_samples(model, BLENDS[:2], rows={"": [0, 1, 0, 1]}):
        both = model(x)
    assert torch.equal(both, together(model, x, [*BLENDS[:2], *BLENDS[:2]]))


def test_components_blocks_and_schedules_of_each_sample_count():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), torch.randn(2, 8)
    studio.attach(model, studio.LoRA(rank=2, targets=("0", "1")), name="dog")
    shake(model, "dog", 0)
    late = Strength(schedule=Schedule(((0.5, 0.0), (0.5, 1.0))), blocks={"1": 0.25})
    for progress, first in ((0.1, {"1": 0.0, "0": 0.0}), (0.9, {"1": 0.25, "0": 1.0})):
        with torch.no_grad(), studio.at_progress(model, progress):
            mixed = together(model, x, [{"dog": late}, {"dog": Strength(0.5, blocks={"0": 0.0})}])
            for row, blocks in enumerate((first, {"0": 0.0, "1": 0.5})):
                with studio.blended(model, {"dog": Strength(blocks=blocks)}):
                    assert torch.allclose(mixed[row], model(x)[row], atol=1e-6)


def test_training_reads_the_same_numbers():
    model, x = adapted("linear")
    with studio.blended_samples(model, BLENDS):
        trained = model(x)
    assert trained.requires_grad
    assert torch.allclose(trained, together(model, x, BLENDS), atol=1e-6)
    trained.sum().backward()
    assert all(tensor.grad is not None for tensor in studio.state(model, "one").values())


def test_strengths_per_sample_are_blends_per_sample():
    model, x = adapted("linear")
    with torch.no_grad(), studio.blended(model, {"one": [0.7, 0.0, 0.25, 0.7], "two": [0.0, 0.0, -1.0, 0.0]}):
        assert torch.equal(model(x), together(model, x, BLENDS))


# -- what is refused, and what is given back ---------------------------------------------------------------------------


def test_the_former_blend_acts_again_after_an_error_too():
    model, x = adapted("linear")
    studio.blend(model, {"two": 0.3})
    levels = assembly_at(model).levels
    before = {name: value for name, value in vars(levels).items() if name in ("samples", "rows", "flat", "strengths")}
    with torch.no_grad():
        base = model(x)
        with pytest.raises(ZeroDivisionError), studio.blended_samples(model, BLENDS):
            assert not torch.equal(model(x), base)
            raise ZeroDivisionError
        assert torch.equal(model(x), base)
    assert {name: value for name, value in vars(levels).items() if name in before} == before


@pytest.mark.parametrize(
    ("blends", "error", "says"),
    [
        ([], BadConfig, "names no sample"),
        ([{"one": 1.0}, {"eon": 1.0}], UnknownName, "did you mean 'one'"),
        ([{"one": [1.0, 2.0]}], BadConfig, "differs by sample; give one number"),
        ([{"one": float("nan")}], BadConfig, "finite"),
    ],
)
def test_impossible_blends_are_refused(blends, error, says):
    model, _ = adapted("linear")
    with pytest.raises(error, match=says), studio.blended_samples(model, blends):
        pass
    assert assembly_at(model).levels.samples is None


def test_other_rows_than_the_blends_name_are_refused():
    model, x = adapted("linear")
    with pytest.raises(SharedLayer, match="names 3 rows, and 0 was called with 4"):
        together(model, x, BLENDS[:3])
    uniform = together(model, x, [BLENDS[0]] * 3)  # one blend leaves no doubt
    with torch.no_grad(), studio.blended(model, BLENDS[0]):
        assert torch.equal(uniform, model(x))


def test_what_all_rows_share_can_have_one_blend_alone():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.randn(4, 8))

        def forward(self, x):
            return x @ self.table.t()

    model, x = Shared(), torch.randn(2, 8)
    studio.attach(model, studio.LoRA(rank=2, targets=("table",)), name="one")
    shake(model, "one", 0)
    with pytest.raises(SharedLayer, match="bare parameter"):
        together(model, x, [{"one": 1.0}, {}])
    with torch.no_grad():
        assert torch.equal(together(model, x, [{"one": 1.0}] * 2), model(x))


def test_a_blend_inside_is_refused():
    model, _ = adapted("linear")
    with studio.blended_samples(model, BLENDS):
        with pytest.raises(DoesNotFit, match="blends of their own"):
            studio.blend(model, {})
        with pytest.raises(DoesNotFit, match="blends of their own"), studio.blended(model, {}):
            pass
    studio.blend(model, {})
