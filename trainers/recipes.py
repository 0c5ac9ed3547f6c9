"""The defaults: everything that is not one of the few facts (base, data, prompt) is decided here or in a family's row.

One recipe per task and sort of base. Where the numbers come from is said beside them; those of image bases stand in the
rows of their families (``studio/families/image/``).
"""

from __future__ import annotations

from typing import Final

from studio.adapters import METHODS, AdapterConfig
from studio.families import FAMILIES, Base
from studio.families.language import LanguageBase
from studio.families.recipe import SMALL_BASE, ImageRecipe, Recipe

__all__ = ["RECIPES", "SMALL_BASE", "ImageRecipe", "Recipe", "recipe_for", "recipes_of", "usual_adapter"]

RECIPES: Final[dict[tuple[str, str], Recipe]] = {
    # Small language base: measured on the embedded base with questions about things that no sample names;
    # docs/language.md has the numbers.
    ("causal-lm", "small"): Recipe(targets="attention+mlp", learning_rate=4e-3, steps=300, batch_size=16),
    # Large language base: the values in common use for instruction data (QLoRA, arXiv:2305.14314, trains LoRA on all
    # linear layers at 2e-4 with 16 samples per step); not measured here, where no such base is at hand.
    ("causal-lm", "large"): Recipe(rank=16, targets="attention+mlp", learning_rate=2e-4, steps=500, batch_size=16),
    # Code: what causal language models are trained with; not measured here.
    ("code", "small"): Recipe(targets="attention+mlp", learning_rate=4e-3, steps=300, batch_size=16),
    ("code", "large"): Recipe(rank=16, targets="attention+mlp", learning_rate=2e-4, steps=500, batch_size=16),
    # Sequence-to-sequence, small: measured on the embedded base with numbers in a language that is new to it: 98 %
    # right to the letter; at rank 8 on attention+mlp with 16 samples and 4e-3, 12 %. Large: T5's LoRA in PEFT's
    # examples (1e-3 on T0-3B and mt0) takes the larger rate that the T5 family is known for; not measured here.
    ("seq2seq", "small"): Recipe(rank=16, targets="all-linear", learning_rate=1e-2, steps=200, batch_size=32),
    ("seq2seq", "large"): Recipe(rank=16, targets="attention+mlp", learning_rate=1e-3, steps=500, batch_size=16),
    # Classification, small: measured on MiniLM with the glosses of the base facts (docs/benchmarks.md); at 2e-3 the
    # same 150 steps reach 0.85 in place of 0.90. Large: RoBERTa's LoRA in its paper (arXiv:2106.09685, 3e-4 to 5e-4 on
    # attention); not measured here.
    ("classify", "small"): Recipe(targets="attention", learning_rate=5e-3, steps=300, batch_size=16),
    ("classify", "large"): Recipe(rank=16, targets="attention", learning_rate=4e-4, steps=500, batch_size=16),
    # Embeddings, small: measured on the embedded base with the German numbers that come with the studio.
    ("embed", "small"): Recipe(targets="attention+mlp", learning_rate=4e-3, steps=300, batch_size=16),
    # Large: the batch of SimCSE (arXiv:2104.08821) with the rate that LoRA takes elsewhere; not measured here.
    ("embed", "large"): Recipe(rank=16, targets="attention+mlp", learning_rate=2e-4, steps=500, batch_size=64),
    # Captions, small: measured on the embedded base with words that are new to it.
    ("caption", "small"): Recipe(targets="attention+mlp", learning_rate=4e-3, steps=300, batch_size=16),
    # Large: the values of instruction data, as LLaVA's own LoRA trains them; not measured here.
    ("caption", "large"): Recipe(rank=16, targets="attention+mlp", learning_rate=2e-4, steps=500, batch_size=16),
    # Speech, small: measured with German numbers on the embedded base (docs/benchmarks.md) and on whisper-tiny.en, cut
    # to hear four seconds, which has all of them right after 60 steps. At 1e-2 the first learns as well and the second
    # breaks; at rank 8 on attention with 4e-3 the first gets twice as many wrong.
    ("speech", "small"): Recipe(rank=16, targets="attention+mlp", learning_rate=6e-3, steps=300, batch_size=16),
    # Large: the rate of LoRA in PEFT's example of Whisper; not measured here.
    ("speech", "large"): Recipe(rank=16, targets="attention", learning_rate=1e-3, steps=500, batch_size=16),
    # Preferences, small: measured on the embedded base with short answers preferred to long ones.
    ("preference", "small"): Recipe(targets="attention+mlp", learning_rate=1e-3, steps=200, batch_size=16),
    # Large: a rate in common use for DPO with LoRA; not measured here.
    ("preference", "large"): Recipe(rank=16, targets="attention+mlp", learning_rate=5e-6, steps=500, batch_size=16),
    ("reward", "small"): Recipe(targets="attention+mlp", learning_rate=2e-3, steps=200, batch_size=16),
    # Large: a rate in common use for reward models with LoRA; not measured here.
    ("reward", "large"): Recipe(rank=16, targets="attention+mlp", learning_rate=1e-4, steps=500, batch_size=16),
    # GRPO, small: measured on the embedded base, which learns to answer in one word within 12 steps; a step draws
    # batch_size groups of answers.
    ("grpo", "small"): Recipe(targets="attention+mlp", learning_rate=1e-2, steps=60, batch_size=4),
    # Large: a rate in common use for GRPO with LoRA; not measured here.
    ("grpo", "large"): Recipe(rank=16, targets="attention+mlp", learning_rate=1e-5, steps=300, batch_size=8),
}
"""(kind of task, size of a language base) -> defaults."""


def recipes_of(task_name: str) -> list[Recipe]:
    """Returns the defaults of a task on bases of all sorts."""
    rows = [row for family in FAMILIES.values() for row in (family.recipes, family.small_recipes)]
    image = [row[task_name] for row in rows if task_name in row]
    return [*image, *(recipe for (name, _), recipe in RECIPES.items() if name == task_name)]


def recipe_for(task_name: str, base: Base | LanguageBase) -> Recipe:
    """Returns the defaults of a task on a base."""
    small = base.parameters < SMALL_BASE
    if isinstance(base, LanguageBase):
        return RECIPES[task_name, "small" if small else "large"]
    family = base.family
    return family.small_recipes[task_name] if small and task_name in family.small_recipes else family.recipes[task_name]


def usual_adapter(recipe: Recipe) -> AdapterConfig:
    """Returns the config of a recipe's adapter."""
    return METHODS[recipe.method](rank=recipe.rank, targets=recipe.targets)  # type: ignore[call-arg]
