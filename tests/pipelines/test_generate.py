"""Generation: what a picture depends on, blends, schedulers, and what is refused."""

from __future__ import annotations

import numpy
import pytest
import torch

import studio
from studio.errors import BadConfig, DoesNotFit, UnknownName
from studio.families import open_base
from studio.pipelines import SCHEDULERS, ImagePipeline
from studio.pipelines.schedulers import make_sampler, sampler_from_record
from tiny import noise_for

PROMPTS = ["tiger on a blue background", "rocket", "red heart on a pink background"]
FAST = {"steps": 4}


def pixels(image):
    return numpy.asarray(image).astype(int)


def equal(first, second):
    return first.size == second.size and first.tobytes() == second.tobytes()


def furthest(first, second):
    return int(abs(pixels(first) - pixels(second)).max())


def shake(model, name, size=0.05):
    """Gives the raising matrices of a new LoRA values, so that it acts."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    with torch.no_grad():
        for key, tensor in studio.state(model, name).items():
            if key.endswith(".up"):
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * size)


@pytest.fixture(scope="module")
def plain():
    """The base alone."""
    return ImagePipeline.open("emoji")


@pytest.fixture(scope="module")
def both():
    """The base with two adapters that act, one of them on the text encoder too; the current blend is empty."""
    pipe = ImagePipeline.open("emoji")
    studio.attach(pipe.pipe, studio.LoRA(rank=4), name="dog")
    studio.attach(pipe.pipe, studio.LoRA(rank=4), name="ink", seed=1, components=["unet", "text_encoder"])
    for name in ("dog", "ink"):
        shake(pipe.pipe, name)
    pipe.blend({})
    return pipe


# -- what a picture depends on ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_equal_rows_give_equal_bits_whatever_the_list_place_and_order(both, rows):
    # two blends, so that some of the neighbours are in other batches
    jobs = [(PROMPTS[n], n, [{"dog": 1.0, "ink": 0.5}, {}][n % 2]) for n in range(3)]
    alone = [both.generate(prompt, seeds=seed, blend=blend, batch_size=rows, **FAST)[0] for prompt, seed, blend in jobs]
    for order in ([2, 0, 1], [1, 2]):
        prompts = [jobs[index][0] for index in order]
        seeds = [0, 1, 2] if rows > 1 else [2]
        blends = [jobs[index][2] for index in order for _ in seeds]
        images = both.generate(prompts, seeds=seeds, blend=blends, batch_size=rows, **FAST)
        for place, index in enumerate(order):
            if index in seeds:
                assert equal(images[place * len(seeds) + seeds.index(index)], alone[index])


def test_other_rows_agree_within_one_level(both):
    first = both.generate(PROMPTS, blend={"dog": 0.7}, **FAST)
    for rows in (2, 3, 5):
        other = both.generate(PROMPTS, blend={"dog": 0.7}, batch_size=rows, **FAST)
        assert max(furthest(a, b) for a, b in zip(first, other, strict=True)) <= 1


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "plms"])
def test_every_scheduler_draws_for_each_image_alone(plain, name):
    seeds = [5, 6, 7]
    together = plain.generate("tiger", seeds=seeds, scheduler=name, batch_size=4, steps=3)
    swapped = plain.generate("tiger", seeds=[7, 5], scheduler=name, batch_size=4, steps=3)
    alone = plain.generate("tiger", seeds=6, scheduler=name, batch_size=4, steps=3)
    assert equal(swapped[0], together[2])
    assert equal(swapped[1], together[0])
    assert equal(alone[0], together[1])
    assert not equal(together[0], together[1])


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name not in ("plms", "lcm", "tcd")])
def test_every_scheduler_ends_near_the_same_picture(plain, name):
    (reference,) = plain.generate("rocket", seeds=1, steps=10)
    (image,) = plain.generate("rocket", seeds=1, steps=10, scheduler=name)
    assert abs(pixels(reference) - pixels(image)).mean() < 25  # of 255; stochastic ones wander a little


def test_pictures_are_what_diffusers_draws(plain):
    """The reference is diffusers' own pipeline call with the same noise."""
    noise = noise_for(plain.pipe, 3)
    reference = plain.pipe("rocket", latents=noise, num_inference_steps=6, guidance_scale=4.0, negative_prompt="red")
    (image,) = plain.generate("rocket", seeds=3, steps=6, guidance=4.0, negative="red")
    assert furthest(image, reference.images[0]) <= 1


def test_threads_are_given_back_and_do_not_change_a_batch(plain):
    seeds = [0, 1, 2]
    before = plain.generate("rocket", seeds=seeds, batch_size=4, **FAST)
    torch.set_num_threads(3)  # three threads cut a batch between its rows
    try:
        after = plain.generate("rocket", seeds=[2, 0, 1], batch_size=4, **FAST)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)
    assert [equal(before[seed], after[place]) for place, seed in enumerate([2, 0, 1])] == [True] * 3


def test_modules_in_training_draw_without_dropout_and_go_on_training():
    pipe = ImagePipeline.open("emoji")
    studio.attach(pipe.pipe, studio.LoRA(rank=4, dropout=0.9), name="dog")
    shake(pipe.pipe, "dog")
    (still,) = pipe.generate("rocket", seeds=0, **FAST)
    pipe.pipe.unet.train()
    modes = [module.training for module in pipe.pipe.unet.modules()]
    (image,) = pipe.generate("rocket", seeds=0, **FAST)
    assert equal(image, still)
    assert [module.training for module in pipe.pipe.unet.modules()] == modes
    assert all(tensor.requires_grad for tensor in studio.state(pipe.pipe, "dog").values())


def test_the_scheduler_of_the_base_is_only_read(plain):
    before = (plain.pipe.scheduler, dict(vars(plain.pipe.scheduler)))
    plain.generate("rocket", **FAST)
    assert plain.pipe.scheduler is before[0]
    assert plain.pipe.scheduler.num_inference_steps == before[1]["num_inference_steps"]


# -- prompts, seeds, sizes -------------------------------------------------------------------------------------------


def test_every_prompt_with_every_seed_prompt_major(plain):
    images = plain.generate(PROMPTS[:2], seeds=[3, 4], **FAST)
    single = [plain.generate(prompt, seeds=seed, **FAST)[0] for prompt in PROMPTS[:2] for seed in (3, 4)]
    assert all(equal(a, b) for a, b in zip(images, single, strict=True))


def test_sizes(plain):
    (wide,) = plain.generate("rocket and red heart on a blue background", width=128, **FAST)
    assert wide.size == (128, 64)
    (tall,) = plain.generate("rocket", width=64, height=72, **FAST)
    assert tall.size == (64, 72)


def test_guidance_one_is_the_prompt_alone_and_negatives_act(plain):
    (alone,) = plain.generate("tiger", guidance=1, **FAST)
    (guided,) = plain.generate("tiger", guidance=5, **FAST)
    (away,) = plain.generate("tiger", guidance=5, negative="tiger on a blue background", **FAST)
    assert not equal(alone, guided)
    assert not equal(guided, away)
    # u + g (c - u) at g just beside 1 is nearly c
    (near,) = plain.generate("tiger", guidance=1 + 1e-6, **FAST)
    assert furthest(alone, near) <= 1


def test_progress_counts_to_its_end(plain):
    seen = []
    plain.generate(
        "rocket", seeds=[0, 1, 2], batch_size=2, scheduler="heun", steps=3, on_step=lambda *at: seen.append(at)
    )
    assert seen[-1] == (6, 6)
    assert seen == sorted(seen)


@pytest.mark.parametrize(
    ("asked", "error", "reason"),
    [
        ({"width": 100}, BadConfig, "width=100: sides of .* divisible by 8; ask for 96 or 104"),
        ({"height": 0}, BadConfig, "height=0"),
        ({"height": 4}, BadConfig, "ask for 8"),
        ({"seeds": -2}, BadConfig, "seed=-2"),
        ({"seeds": [1.5]}, BadConfig, r"seed=1\.5"),
        ({"seeds": [2**63]}, BadConfig, "from 0 to"),
        ({"seeds": []}, BadConfig, "1 prompts and 0 seeds"),
        ({"steps": 0}, BadConfig, "steps=0"),
        ({"steps": 1001}, BadConfig, "from 1 to 1000"),
        ({"guidance": float("nan")}, BadConfig, "guidance=nan"),
        ({"guidance": -1}, BadConfig, "guidance=-1"),
        ({"batch_size": 0}, BadConfig, "batch_size=0"),
        ({"scheduler": "eular a"}, UnknownName, "did you mean 'euler-a'"),
        ({"scheduler": "plms"}, DoesNotFit, "prediction_type = 'v_prediction'"),
        ({"scheduler": "lcm", "steps": 200}, BadConfig, "the scheduler lcm cannot make 200 steps"),
        ({"negative": "red <dog:1>"}, UnknownName, "'dog', which is not loaded"),
        ({"prompt": "a tiger <dog:0.5>"}, UnknownName, "none is loaded"),
        ({"prompt": 7}, BadConfig, "a prompt is a text"),
        ({"prompt": ["tiger", None]}, BadConfig, "a prompt is a text, not None"),
        ({"prompt": "tiger (" * 40}, BadConfig, "nothing closes the '\\('"),
        ({"blend": {"dog": 1.0}}, UnknownName, "'dog'"),
        ({"blend": [{}, {}]}, BadConfig, "2 blends for 1 pictures"),
    ],
)
def test_impossible_requests_are_refused_in_one_sentence(plain, asked, error, reason):
    asked = {"prompt": "tiger", "steps": 2, **asked}
    with pytest.raises(error, match=reason) as problem:
        plain.generate(asked.pop("prompt"), **asked)
    assert "\n" not in str(problem.value)


def test_schedulers_by_the_names_of_other_programs():
    own = open_base("emoji").pipe.scheduler
    for asked, cls in {
        "DPM++ 2M Karras": "DPMSolverMultistepScheduler",
        "dpmpp_2m_sde": "DPMSolverMultistepScheduler",
        "Euler a": "EulerAncestralDiscreteScheduler",
        "euler_ancestral": "EulerAncestralDiscreteScheduler",
        "uni-pc": None,
    }.items():
        if cls is None:
            with pytest.raises(UnknownName, match="unipc"):
                make_sampler(own, asked, 4)
            continue
        sampler = make_sampler(own, asked, 4)
        assert type(sampler.scheduler).__name__ == cls
        assert sampler.scheduler.config.prediction_type == "v_prediction"
        assert sampler.scheduler.config.timestep_spacing == "trailing"
        again = sampler_from_record(sampler.record)
        ours, theirs = ({k: v for k, v in s.config.items() if k[0] != "_"} for s in (again, sampler.scheduler))
        assert ours == theirs


def test_a_scheduler_that_draws_one_noise_for_all_images_is_refused(plain):
    from diffusers import DDIMInverseScheduler, SASolverScheduler

    for scheduler in (DDIMInverseScheduler(), SASolverScheduler()):
        with pytest.raises(DoesNotFit, match="would depend on its neighbours"):
            plain.generate("tiger", scheduler=scheduler, **FAST)


def test_a_scheduler_object_is_copied(plain):
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(plain.pipe.scheduler.config, clip_sample=False)
    (first,) = plain.generate("rocket", scheduler=scheduler, **FAST)
    (named,) = plain.generate("rocket", scheduler="ddim", **FAST)
    assert scheduler.num_inference_steps is None
    assert furthest(first, named) <= 1


# -- blends ----------------------------------------------------------------------------------------------------------


def test_adapters_act_and_the_empty_blend_is_the_base_to_the_bit(plain, both):
    (base,) = plain.generate("rocket", **FAST)
    assert equal(both.generate("rocket", **FAST)[0], base)
    (dog,) = both.generate("rocket", blend={"dog": 1.0}, **FAST)
    assert furthest(dog, base) > 8
    assert equal(both.generate("rocket", blend={}, **FAST)[0], base)
    assert equal(both.generate("rocket", blend="dog", **FAST)[0], dog)


def test_a_tag_replaces_the_blend_for_its_pictures_alone(both):
    tagged, untagged = both.generate(["rocket <dog:0.7>", "rocket"], blend={"ink": 1.0}, **FAST)
    assert equal(tagged, both.generate("rocket", blend={"dog": 0.7}, **FAST)[0])
    assert equal(untagged, both.generate("rocket", blend={"ink": 1.0}, **FAST)[0])
    (lora,) = both.generate("rocket <lora:dog:0.7>", **FAST)
    assert equal(lora, tagged)
    (te,) = both.generate("rocket <lora:ink:0:0.9>", **FAST)
    assert equal(te, both.generate("rocket", blend={"ink": studio.Strength(text_encoder=0.0, unet=0.9)}, **FAST)[0])


def test_a_blend_per_picture_and_a_strength_per_picture(both):
    listed = both.generate("rocket", seeds=[0, 0, 0], blend=[{}, {"dog": 0.5}, {"dog": 1.0, "ink": 0.5}], **FAST)
    single = [both.generate("rocket", blend=blend, **FAST)[0] for blend in ({}, {"dog": 0.5}, {"dog": 1.0, "ink": 0.5})]
    assert all(equal(a, b) for a, b in zip(listed, single, strict=True))
    dealt = both.generate("rocket", seeds=[0, 0], blend={"dog": [0.0, 0.5]}, **FAST)
    assert equal(dealt[0], single[0])
    assert equal(dealt[1], single[1])
    with pytest.raises(BadConfig, match="2 entries for 1 pictures"):
        both.generate("rocket", blend={"dog": [0.0, 0.5]}, **FAST)


def test_the_current_blend_acts_and_is_given_back(both):
    both.blend({"dog": 0.5})
    try:
        (current,) = both.generate("rocket", **FAST)
        (tagged,) = both.generate("rocket <dog:0.5>", **FAST)
        assert equal(current, tagged)
        both.generate("rocket", blend={"ink": 1.0}, **FAST)
        with pytest.raises(UnknownName):
            both.generate("rocket", blend={"inc": 1.0}, **FAST)
        assert {name: info.strength for name, info in both.adapters.items()} == {"dog": 0.5, "ink": 0.0}
        assert equal(both.generate("rocket", **FAST)[0], current)
    finally:
        both.blend({})


def test_baked_is_live_and_unbake_gives_the_bits_back(both):
    live = both.generate(PROMPTS, blend={"dog": 0.8, "ink": 0.6}, **FAST)
    before = {key: tensor.clone() for key, tensor in both.pipe.unet.state_dict().items()}
    both.bake({"dog": 0.8, "ink": 0.6})
    try:
        baked = both.generate(PROMPTS, **FAST)
        with pytest.raises(DoesNotFit, match="baked"):
            both.generate("rocket <dog:0.5>", **FAST)
    finally:
        both.unbake()
    assert max(furthest(a, b) for a, b in zip(live, baked, strict=True)) <= 1
    assert all(torch.equal(tensor, before[key]) for key, tensor in both.pipe.unet.state_dict().items())


def test_unload_gives_the_base_back(plain):
    pipe = ImagePipeline.open("emoji")
    (base,) = pipe.generate("rocket", **FAST)
    studio.attach(pipe.pipe, studio.LoRA(rank=2), name="dog")
    shake(pipe.pipe, "dog")
    assert not equal(pipe.generate("rocket", **FAST)[0], base)
    pipe.unload("dog")
    assert equal(pipe.generate("rocket", **FAST)[0], base)
    with pytest.raises(UnknownName):
        pipe.unload("dog")


# -- what can be opened ----------------------------------------------------------------------------------------------


def test_a_folder_and_an_object_draw_the_same(plain, tmp_path):
    plain.pipe.save_pretrained(tmp_path / "mine")
    (base,) = plain.generate("rocket", **FAST)
    folder = ImagePipeline.open(tmp_path / "mine")
    assert folder.base.id == "mine"
    assert equal(folder.generate("rocket", **FAST)[0], base)
    assert equal(ImagePipeline.open(plain.pipe).generate("rocket", **FAST)[0], base)


def test_bf16_draws_the_picture_too(plain):
    (fine,) = plain.generate("rocket", steps=10)
    (coarse,) = ImagePipeline.open("emoji", dtype=torch.bfloat16).generate("rocket", steps=10)
    assert 0 < abs(pixels(fine) - pixels(coarse)).mean() < 8


def test_numbers_that_are_not_finite_are_refused():
    pipe = ImagePipeline.open("emoji")
    with torch.no_grad():
        pipe.pipe.unet.conv_out.weight.fill_(float("nan"))
    with pytest.raises(studio.StudioError, match="not finite in float32"):
        pipe.generate("rocket", **FAST)


def test_an_offloaded_pipeline_draws_the_same_with_its_adapters(plain):
    from accelerate import cpu_offload

    (base,) = plain.generate("rocket", **FAST)
    pipe = ImagePipeline.open("emoji")
    for name in ("unet", "text_encoder", "vae"):
        cpu_offload(pipe.pipe.components[name], execution_device=torch.device("cpu"))
    (image,) = pipe.generate("rocket", **FAST)
    assert equal(image, base)
    assert image.info == base.info  # the hash of weights that are not there is theirs too
    studio.attach(pipe.pipe, studio.LoRA(rank=4), name="dog")
    shake(pipe.pipe, "dog")
    assert furthest(pipe.generate("rocket", **FAST)[0], base) > 8
    assert equal(pipe.generate("rocket", blend={}, **FAST)[0], base)
