"""The report's own recipes are recipes: what can be checked of it without a CUDA device."""

from pathlib import Path

from cxrsynth.recipe.read import load_recipe
from tests.gpu.report import ddpo_recipe


def test_the_recipe_of_direct_rewards_is_one(tmp_path: Path) -> None:
    [stage] = load_recipe(ddpo_recipe(tmp_path)).stages
    assert stage.stage == "ddpo"
