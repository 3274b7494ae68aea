"""A stage's inputs are loaded once; what its checks remember survives a stop."""

from pathlib import Path

import pytest
import torch

from cxrsynth.errors import ModelError
from cxrsynth.rewards.networks import FindingClassifier
from cxrsynth.rl.checks import SilentRewards, check_ratio
from tests.tuning.making import install_brightness, recipe, tune, write_recipe


@pytest.mark.slow
def test_reward_models_and_features_are_loaded_once(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Setup checks them by loading them; two stages and the evaluator share what it has loaded."""
    install_brightness(tmp_path / "own", monkeypatch)
    import bright_reward  # type: ignore[import-not-found]

    rewards: list[str] = []
    extractors: list[str] = []
    init, from_pretrained = bright_reward.Brightness.__init__, FindingClassifier.from_pretrained

    def counted_init(self: object, backend: str, *, device: torch.device) -> None:
        rewards.append(backend)
        init(self, backend, device=device)

    def counted_load(folder: Path, **given: object) -> FindingClassifier:
        extractors.append(str(folder))
        loaded: FindingClassifier = from_pretrained(folder, **given)
        return loaded

    monkeypatch.setattr(bright_reward.Brightness, "__init__", counted_init)
    monkeypatch.setattr(FindingClassifier, "from_pretrained", counted_load)
    content = recipe(tiny_model, iterations=1)
    content["stages"].append(content["stages"][0] | {"train": {"unet": "frozen"}})
    content["evaluation"]["evaluator"] = {"brightness": "dark"}
    result = tune(write_recipe(tmp_path, content), tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert sorted(rewards) == ["bright", "dark"]
    assert len(extractors) == 1


def test_silence_is_counted_over_a_stop() -> None:
    answers, silence = torch.tensor([[0.5, 0.5]]), torch.tensor([[0.5, torch.nan]])
    whole, first, second = (SilentRewards(["a", "b"], 3) for _ in range(3))
    for checks in (whole, first):
        checks.check(silence, ["r0"])
        checks.check(answers, ["r1"])
        checks.check(silence, ["r1"])
        checks.check(silence, ["r2"])
    second.load(first.state())
    for checks in (whole, second):
        with pytest.raises(ModelError, match="report r0 and 2 others before: reward b is not a number"):
            checks.check(silence, ["r0"])


def test_ratios_off_by_more_than_rounding_are_refused() -> None:
    check_ratio(0.9e-3, torch.float32)
    check_ratio(7e-3, torch.bfloat16)
    with pytest.raises(ModelError, match=r"is 1.0e-03 before any update, expected at most 9.8e-04"):
        check_ratio(1.0e-3, torch.float32)
