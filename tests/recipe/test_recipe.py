"""Recipes: read strictly, all errors at once, overrides, resolved paths; and every file under recipes/."""

from pathlib import Path

import pytest
import yaml

from cxrsynth.errors import RecipeError
from cxrsynth.recipe.messages import RENAMED_KEYS
from cxrsynth.recipe.read import dump_recipe, load_recipe, recipe_schema
from cxrsynth.recipe.schema import DdpoStage, Recipe, RlcfStage
from cxrsynth.reports.template import PromptFormat, parse_template
from cxrsynth.settings import PromptStyle

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
GOOD = {"reports": {"table": "r.csv"}, "stages": [{"stage": "rlcf", "iterations": 3}]}

# The method as published, and a run that is too short to exploit a reward.
_WITHOUT_VIEWS = {"nano-policy-gradient", "smoke"}


def refusal(tmp_path: Path, content: object, *overrides: str) -> str:
    path = tmp_path / "r.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    with pytest.raises(RecipeError) as error:
        load_recipe(path, overrides=overrides)
    return str(error.value)


def read(tmp_path: Path, content: object, *overrides: str) -> Recipe:
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_recipe(path, overrides=overrides)


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: path.name)
def test_every_recipe_loads_and_states_hardware_and_time(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    (tmp_path / "resolved.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "resolved.yaml") == recipe
    head = path.read_text().splitlines()
    comment = " ".join(line for line in head if line.startswith("#"))
    assert head[0].startswith("# ")
    assert "Hardware:" in comment
    assert "Time:" in comment or "time" in comment
    reinforced = [stage for stage in recipe.stages if isinstance(stage, RlcfStage | DdpoStage)]
    assert all(stage.images >= 4 for stage in reinforced)
    if path.stem not in _WITHOUT_VIEWS:
        assert all(reward.augment > 1 for stage in reinforced for reward in stage.rewards.values())
    for stage in reinforced:
        # What guidance multiplies shows as too much contrast.
        guided = stage.forward is not None and (stage.sampling.guidance or 0) > 2
        assert not guided or stage.forward.max_norm_ratio is not None
    if recipe.model.checkpoint == "nano":
        assert recipe.reports.table.is_file()
    if any("xrv" in reward.backend for stage in reinforced for reward in stage.rewards.values()):
        assert "docs/rewards.md shows how to make one" in comment


def test_there_are_recipes() -> None:
    assert {"smoke.yaml", "sd15-rlcf-lora.yaml", "sd15-rlcf-full-8gpu.yaml"} <= {p.name for p in RECIPES.glob("*.yaml")}


@pytest.mark.parametrize(
    ("name", "prompts"),
    [
        ("sana-rlcf-lora", PromptStyle.FINDINGS),
        ("pixart-rlcf-lora", PromptStyle.FINDINGS),
        ("roentgen-v2-rlcf-lora", parse_template("roentgen-v2")),
    ],
)
def test_recipes_of_public_models_prompt_them_as_they_were_trained(name: str, prompts: PromptFormat) -> None:
    assert load_recipe(RECIPES / f"{name}.yaml").model.prompt_format == prompts


def test_the_schema_for_editors_matches_the_code() -> None:
    assert (RECIPES / "recipe.schema.json").read_text() == recipe_schema()


def test_all_errors_are_reported_at_once(tmp_path: Path) -> None:
    message = refusal(
        tmp_path,
        {
            "seed": "x",
            "model": {"chekpoint": "nano"},
            "reports": {"table": "a.csv", "held_out": 0},
            "stages": [
                {"stage": "rlcf", "iterations": 5, "train": {"unet": "ful"}, "rewards": {"posture": {"wieght": 1}}},
                {"stage": "ddpp"},
                {"iterations": 4},
                {"stage": "ddpo", "iterations": 5, "train": {"unet": "frozen", "ace": False}},
                {
                    "stage": "ddpo",
                    "iterations": 5,
                    "train": {"ace": {"tokns": 3}},
                    "sampling": {"eta": 0},
                    "forward": {},
                },
                {"stage": "ddpo", "objective": "policy_gradient", "iterations": 5, "update": {"num_minibatches": 7}},
                {"stage": "rlcf", "iterations": 5, "train": {"ace": {"tokens": 3, "subspace": 3}}},
                {"stage": "rlcf", "iterations": 5, "train": {"ace": {"exploration_std": 0.3}}},
                {
                    "stage": "rlcf",
                    "objective": "policy_gradient",
                    "iterations": 5,
                    "images_per_report": 3,
                    "update": {"num_minibatches": 1},
                    "train": {"ace": {"subspace": 3, "exploration_std": 1}},
                },
                {"stage": "rlcf", "objective": "policy_gradient", "iterations": 5, "advantage": {"min_count": 33}},
                {
                    "stage": "rlcf",
                    "iterations": True,
                    "images_per_report": "4",
                    "train": {"ace": "no", "learning_rate": True},
                },
                {"stage": "rlcf", "iterations": 1_000_000, "rewards": {"posture": {"augment": 1_000}}},
                {"stage": "rlcf", "iterations": 5, "train": {"ace": {"subspace": 3, "kl_weight": 1}}},
            ],
        },
    )
    for expected in (
        "r.yaml: seed: found 'x'",
        "r.yaml: model.chekpoint: unknown key\n  known keys: checkpoint, device, embeddings,"
        " gradient_checkpointing, lora, precision, prompt, prompt_template, scheduler, unet, vae\n"
        "  did you mean: checkpoint",
        "r.yaml: reports.held_out: found 0\n  expected: greater than or equal to 1",
        "r.yaml: stages.0.train.unet: found 'ful'\n  expected: 'full', 'lora' or 'frozen'",
        "r.yaml: stages.0.rewards.posture.wieght: unknown key\n  known keys: augment, backend, std_weight, weight\n"
        "  did you mean: weight",
        "r.yaml: stages.1: stage 'ddpp'\n  expected: sft, distill, rlcf or ddpo",
        "r.yaml: stages.2: has no stage",
        "r.yaml: stages.3.train: nothing is trained",
        "r.yaml: stages.4.train.ace.tokns: unknown key\n  known keys: exploration_std, kl_weight, subspace, tokens",
        "r.yaml: stages.4.sampling.eta: found 0\n  expected: greater than 0",
        "r.yaml: stages.5: update.num_minibatches 7: does not divide the 64 images",
        "r.yaml: stages.6.train.ace: tokens and subspace are two forms",
        "r.yaml: stages.7.train.ace: exploration_std needs subspace",
        "r.yaml: stages.8: images_per_report 3: expected an even number",
        "r.yaml: stages.9.advantage: min_count 33: more than the buffer of 32 values ever holds",
        "r.yaml: stages.10.iterations: found True\n  expected: a valid integer",
        "r.yaml: stages.10.images_per_report: found '4'\n  expected: a valid integer",
        "r.yaml: stages.10.train.learning_rate: found true, expected a number",
        "r.yaml: stages.10.train.ace: found 'no'\n  expected: a valid boolean",
        "r.yaml: stages.11.iterations: found 1000000\n  expected: less than or equal to 999999",
        "r.yaml: stages.11.rewards.posture.augment: found 1000\n  expected: less than or equal to 100",
        "r.yaml: stages.12.train.ace: kl_weight is of shifts, and none are explored",
    ):
        assert expected in message
    assert message.count("r.yaml:") == 22


@pytest.mark.parametrize(
    ("place", "old", "new"),
    [
        ("stages.0.train.ace", "explore", "exploration_std"),
        ("stages.0.advantage", "least", "min_count"),
        ("stages.0.update", "updates", "num_minibatches"),
        ("stages.0.update", "timesteps", "timestep_fraction"),
        ("stages.1", "unconditional", "cond_dropout_prob"),
        ("evaluation", "judge", "evaluator"),
        ("stages.0.rewards.posture", "spread_weight", "std_weight"),
    ],
)
def test_an_old_key_is_refused_with_its_new_name(place: str, old: str, new: str, tmp_path: Path) -> None:
    gradient = {"objective": "policy_gradient"} if place in ("stages.0.advantage", "stages.0.update") else {}
    stages = [GOOD["stages"][0] | gradient, {"stage": "sft", "data": "images", "steps": 3}]
    found = refusal(tmp_path, GOOD | {"stages": stages}, f"{place}.{old}=1")
    assert found == f"--set {place}.{old}: renamed to {new}"


def test_every_renamed_key_is_tested() -> None:
    mark = next(m for m in test_an_old_key_is_refused_with_its_new_name.pytestmark if m.name == "parametrize")
    assert {(old, new) for _, old, new in RENAMED_KEYS} == {(old, new) for _, old, new in mark.args[1]}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("- a list\n", "found a list"),
        ("a: [1\n", "line 2: not valid YAML"),
        ("!!python/object/apply:os.system [true]\n", "not valid YAML"),
        ("seed: 2024-99-99\n", "not valid YAML"),
        ("a: " + 3000 * "[", "not valid YAML"),
        ("seed: 1\nmodel: {}\nseed: 2\n", "line 3: not valid YAML: key 'seed' is given twice"),
        ({"stages": []}, "reports: missing"),
        (GOOD | {"stages": []}, "stages: found"),
    ],
)
def test_files_that_are_not_recipes_are_refused(content: object, expected: str, tmp_path: Path) -> None:
    assert expected in refusal(tmp_path, content)


def test_sections_may_be_merged(tmp_path: Path) -> None:
    """A merge (`<<`) is not a key given twice."""
    (tmp_path / "r.yaml").write_text(
        "reports: {table: r.csv}\n"
        "stages:\n"
        "  - {stage: ddpo, objective: policy_gradient, iterations: 1, sampling: &first {steps: 10, guidance: 4}}\n"
        "  - {stage: ddpo, objective: policy_gradient, iterations: 1, sampling: &second {<<: *first, steps: 20}}\n"
        "  - {stage: ddpo, objective: policy_gradient, iterations: 1, sampling: {<<: *second, eta: 0.5}}\n"
    )
    stages = [stage.sampling for stage in load_recipe(tmp_path / "r.yaml").stages if isinstance(stage, DdpoStage)]
    assert [(one.steps, one.guidance, one.eta) for one in stages] == [(10, 4, 1.0), (20, 4, 1.0), (20, 4, 0.5)]


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "none.yaml")


def test_overrides_reach_any_key(tmp_path: Path) -> None:
    recipe = read(tmp_path, GOOD, "seed=7", "stages.0.train.ace=false", "evaluation.every=2", "trackers=[wandb]")
    assert (recipe.seed, recipe.evaluation.every, recipe.trackers) == (7, 2, ("wandb",))
    stage = recipe.stages[0]
    assert isinstance(stage, RlcfStage)
    assert stage.train.ace_section is None


def test_an_override_leaves_other_places_of_an_anchor_alone(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        """
reports: {table: reports.csv}
stages:
  - &first
    stage: rlcf
    iterations: 3
    rewards: &rewards {posture: {weight: 1.0}, diagnosis: {weight: 1.0}}
    train: &train {learning_rate: 1.0e-3}
  - {stage: rlcf, iterations: 3, rewards: *rewards, train: *train}
  - {<<: *first, iterations: 4}
"""
    )
    (tmp_path / "reports.csv").write_text("id,report\n")
    changes = ("stages.0.rewards.posture.weight=2", "stages.1.train.learning_rate=5.0e-3", "stages.2.iterations=9")
    before, after = (load_recipe(tmp_path / "r.yaml", overrides=given) for given in ((), changes))
    changed = differences(before.model_dump(), after.model_dump())
    assert [(stage.iterations, stage.train.learning_rate) for stage in after.stages] == [
        *((3, 1.0e-3), (3, 5.0e-3), (9, 1.0e-3)),
    ]
    weights = [stage.rewards["posture"].weight for stage in after.stages if isinstance(stage, RlcfStage)]
    assert weights == [2, 1, 1], changed


def test_errors_name_the_file_or_the_override_at_fault(tmp_path: Path) -> None:
    wrong = GOOD | {"seed": "seven"}
    lines = refusal(tmp_path, wrong, "stages.0.iterations=abc", "evaluation={evry: 1}").splitlines()
    assert f"{tmp_path / 'r.yaml'}: seed: found 'seven'" in lines
    assert "--set stages.0.iterations: found 'abc'" in lines
    assert "--set evaluation.evry: unknown key" in lines


def test_an_ensemble_of_reward_models(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    rewards = {"posture": {"backend": ["nano", "mine"]}, "diagnosis": {}}
    content = GOOD | {"stages": [{"stage": "rlcf", "iterations": 3, "rewards": rewards}]}
    stage = read(tmp_path, content).stages[0]
    assert isinstance(stage, RlcfStage)
    posture, diagnosis = stage.rewards["posture"], stage.rewards["diagnosis"]
    assert (posture.backends, posture.std_weight) == (("nano", str(tmp_path / "mine")), 0.5)
    assert (diagnosis.backends, diagnosis.std_weight) == (("nano",), None)
    stage = read(tmp_path, content, "stages.0.rewards.posture.std_weight=0").stages[0]
    assert isinstance(stage, RlcfStage)
    assert stage.rewards["posture"].std_weight == 0
    for override, expected in {
        "stages.0.rewards.diagnosis.std_weight=1": "std_weight is of an ensemble",
        "stages.0.rewards.diagnosis.backend=[nano]": "at least 2",
        "stages.0.rewards.diagnosis.backend=[nano,nano]": "names a reward model twice",
        "stages.0.rewards.posture.backend=[mine,./mine]": (
            "--set stages.0.rewards.posture.backend: mine, ./mine name one reward model twice"
        ),
        "stages.0.rewards.posture.weight=1e39": "less than or equal to 1000000",
    }.items():
        assert expected in refusal(tmp_path, content, override)


def differences(old: object, new: object, path: str = "") -> dict[str, object]:
    """Dotted path -> new value, of all that differs between two resolved recipes."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        parts = [differences(old.get(key), new.get(key), f"{path}.{key}") for key in keys]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        parts = [differences(*pair, f"{path}.{place}") for place, pair in enumerate(zip(old, new, strict=True))]
    else:
        return {} if old == new else {path.removeprefix("."): new}
    return {key: value for part in parts for key, value in part.items()}


ABBREVIATED = {
    "reports": {"table": "r.csv"},
    "stages": [
        {"stage": "rlcf", "iterations": 3, "train": {"ace": True}},
        {"stage": "sft", "data": "images", "steps": 3},
        {"stage": "ddpo", "iterations": 3, "objective": "policy_gradient", "rewards": {"posture": {}, "diagnosis": {}}},
    ],
}


@pytest.mark.parametrize(
    "override",
    [
        "seed=3",
        "model.precision=fp32",
        "reports.limit=5",
        "stages.0.rewards.posture.weight=2.0",
        "stages.0.rewards.posture.backend=xrv",
        "stages.2.rewards.posture.weight=2.0",
        "stages.0.train.learning_rate=1.0e-4",
        "stages.0.train.lora.rank=4",
        "stages.2.train.lora.alpha=4",
        "stages.0.sampling.guidance=2.0",
        "stages.2.sampling.steps=7",
        "stages.0.comparison.temperature=0.25",
        "stages.0.comparison.baseline_images=2",
        "stages.0.forward.strength=0.5",
        "stages.2.update.kl_weight=0.5",
        "stages.2.advantage.clip=3.0",
        "stages.1.train.unet=lora",
        "evaluation.hacking_margin=0.2",
        "checkpoints.keep=3",
    ],
)
def test_an_override_changes_one_value_of_the_resolved_recipe(override: str, tmp_path: Path) -> None:
    key, _, value = override.partition("=")
    plain, changed = (yaml.safe_load(dump_recipe(read(tmp_path, ABBREVIATED, *given))) for given in ((), (override,)))
    assert differences(plain, changed) == {key: yaml.safe_load(value)}


def test_an_override_within_an_abbreviation_keeps_the_rest(tmp_path: Path) -> None:
    """`ace: true`, or the same by default, is a section of two keys; `evaluator: nano-judge` one of three."""
    for content in (ABBREVIATED, GOOD):
        stage = read(tmp_path, content, "stages.0.train.ace.subspace=16").stages[0]
        assert isinstance(stage, RlcfStage)
        assert stage.train.ace_section is not None
        assert (stage.train.ace_section.subspace, stage.train.ace_section.exploration_std) == (16, 0.3)
    evaluation = read(tmp_path, GOOD, "evaluation.evaluator.posture=xrv").evaluation
    assert evaluation.evaluators == {"posture": "xrv", "diagnosis": "nano-judge", "consistency": "nano-judge"}
    twice = ("stages.0.rewards.posture.weight=2", "stages.0.rewards.diagnosis.weight=0")
    stage = read(tmp_path, GOOD, *twice).stages[0]
    assert isinstance(stage, RlcfStage)
    assert {name: reward.weight for name, reward in stage.rewards.items()} == {
        "posture": 2.0,
        "diagnosis": 0.0,
        "consistency": 1.0,
    }


def test_defaults_follow_an_overridden_objective(tmp_path: Path) -> None:
    """Defaults of the other objective are not in the way, unless the recipe itself names them."""
    stage = read(tmp_path, GOOD, "stages.0.objective=policy_gradient", "stages.0.update.clip_range=0.1").stages[0]
    assert isinstance(stage, RlcfStage)
    assert (stage.forward, stage.comparison.kind, stage.comparison.temperature) == (None, "margin", None)
    stage = read(tmp_path, GOOD, "stages.0.comparison.kind=group").stages[0]
    assert isinstance(stage, RlcfStage)
    assert (stage.comparison.temperature, stage.comparison.baseline_images) == (None, None)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("stages.0.train.ace.subspaec=16", "stages.0.train.ace.subspaec: unknown key"),
        ("stages.0.train.ace.tokens=16", "stages.0.train.ace: tokens and subspace are two forms"),
        ("seed.deep=1", "--set seed.deep: seed is 0, which has no keys"),
        ("model.checkpoint.deep=1", "--set model.checkpoint.deep: model.checkpoint is 'nano', which has no keys"),
        ("trackers.0=wandb", "not a position in a list of 0"),
        ("seed", "expected key=value"),
        ("stages.4.iterations=1", "not a position in a list of 1"),
        ("stages.x.iterations=1", "not a position in a list"),
        ("stages.0.iterations.deep=1", "iterations"),
        ("seed=[1", "not valid YAML"),
        ("evaluation={steps: 3, steps: 4}", "not valid YAML"),
        ("sed=1", "did you mean: seed"),
        ("stages.0.train.learning_rate=.inf", "stages.0.train.learning_rate: found inf"),
        ("stages.0.train.learning_rate=.nan", "stages.0.train.learning_rate: found nan"),
    ],
)
def test_overrides_of_unknown_places_are_refused(override: str, expected: str, tmp_path: Path) -> None:
    assert expected in refusal(tmp_path, GOOD, override)


def test_numbers_in_exponent_notation_are_read_as_numbers(tmp_path: Path) -> None:
    """YAML reads 1e-5, without a point, as text."""
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(GOOD))
    recipe = load_recipe(
        tmp_path / "r.yaml", overrides=["stages.0.train.learning_rate=1e-5", "stages.0.train.ema_decay=0.9"]
    )
    stage = recipe.stages[0]
    assert isinstance(stage, RlcfStage)
    assert (stage.train.learning_rate, stage.train.ema_decay) == (1e-5, 0.9)


def test_paths_are_relative_to_the_recipe_and_the_resolved_recipe_loads_again(tmp_path: Path) -> None:
    recipe = read(tmp_path, GOOD | {"reports": {"table": "in/r.csv", "held_out": "h.csv"}})
    assert recipe.reports.table == tmp_path / "in" / "r.csv"
    assert recipe.reports.held_out == tmp_path / "h.csv"
    again = tmp_path / "elsewhere" / "recipe.yaml"
    again.parent.mkdir()
    again.write_text(dump_recipe(recipe))
    assert load_recipe(again) == recipe


def stage_refusal(tmp_path: Path, **stage: object) -> list[str]:
    """The problems of one stage, a line each."""
    message = refusal(tmp_path, GOOD | {"stages": [{"stage": "rlcf", "iterations": 3} | stage]})
    return message.removeprefix(f"{tmp_path / 'r.yaml'}: stages.0: ").splitlines()


def test_what_belongs_to_another_objective_is_refused_all_at_once(tmp_path: Path) -> None:
    belongs = "belongs to objective: policy_gradient, and this stage has objective: forward"
    assert stage_refusal(
        tmp_path,
        update={"clip_range": 0.1},
        advantage={},
        sampling={"eta": 1.0},
        comparison={"kind": "sign"},
        images_per_report=3,
    ) == [
        f"update: {belongs}",
        f"advantage: {belongs}",
        f"sampling.eta: {belongs}",
        "  before version 0.3.0, objective: policy_gradient was the only one: add it to keep what was done",
        "images_per_report 3: expected an even number, because train.ace.exploration_std uses every shift with both"
        " signs",
        "comparison.kind sign: not one of objective: forward",
        "  expected: win_probability, margin, group",
    ]
    assert stage_refusal(
        tmp_path, objective="policy_gradient", comparison={"kind": "win_probability", "temperature": 0.5, "pool": 2}
    ) == [
        "comparison.kind win_probability: not one of objective: policy_gradient",
        "  expected: margin, sigmoid, sign",
        "comparison.temperature: not used by objective: policy_gradient, leave it out or set it to null",
    ]
    assert stage_refusal(
        tmp_path, objective="policy_gradient", forward={}, sampling={"sampler": "ddim"}, comparison={"kind": "group"}
    ) == [
        "forward: belongs to objective: forward, and this stage has objective: policy_gradient",
        "sampling.sampler: belongs to objective: forward, and this stage has objective: policy_gradient",
        "comparison.kind group: not one of objective: policy_gradient",
        "  expected: margin, sigmoid, sign",
    ]


@pytest.mark.parametrize(
    ("comparison", "key"),
    [
        ({"pool": 2}, "pool"),
        ({"beta": 2.0}, "beta"),
        ({"kind": "margin", "temperature": 1.0}, "temperature"),
        ({"kind": "group", "baseline_images": 2}, "baseline_images"),
        ({"kind": "group", "centre": True}, "centre"),
    ],
)
def test_a_comparison_has_no_settings_that_do_nothing(comparison: dict[str, object], key: str, tmp_path: Path) -> None:
    kind = comparison.get("kind", "win_probability")
    assert stage_refusal(tmp_path, comparison=comparison) == [
        f"comparison.{key}: not used by kind: {kind} of objective: forward, leave it out or set it to null"
    ]


def test_an_unknown_key_hides_no_contradiction(tmp_path: Path) -> None:
    sections = {
        "train": {"ace": False, "learnin_rate": 1e-4},
        "sampling": {"eta": 1.0},
        "comparison": {"kind": "group"},
    }
    found = refusal(
        tmp_path, GOOD | {"stages": [{"stage": "rlcf", "iterations": 3, "images_per_report": 1} | sections]}
    )
    assert "stages.0.train.learnin_rate: unknown key" in found
    assert "stages.0: sampling.eta: belongs to objective: policy_gradient" in found
    assert "images_per_report 1: an image is compared with the others of its report" in found
    # Without the value that has another error it would be another stage, of which nothing can be said.
    sections["train"] = {"ace": False, "learnin_rate": 1e-4, "ema_decay": 7}
    found = refusal(
        tmp_path, GOOD | {"stages": [{"stage": "rlcf", "iterations": 3, "images_per_report": 1} | sections]}
    )
    assert "ema_decay" in found
    assert "sampling.eta" not in found


@pytest.mark.parametrize("stage", [{"comparison": {"kind": "group"}}, {"stage": "ddpo"}])
def test_one_image_cannot_be_compared_with_its_group(stage: dict[str, object], tmp_path: Path) -> None:
    alone = stage_refusal(tmp_path, images_per_report=1, train={"ace": False}, **stage)
    assert alone == [
        "images_per_report 1: an image is compared with the others of its report",
        "  expected: at least 2",
    ]
    mirrored = stage_refusal(
        tmp_path, images_per_report=2, train={"ace": {"subspace": 4, "exploration_std": 0.3}}, **stage
    )
    assert mirrored == [
        "images_per_report 2: an image is compared with the others of its report",
        "  expected: at least 4, because its mirror image (train.ace.exploration_std) does not count",
    ]


def test_the_resolved_recipe_names_what_the_objective_uses(tmp_path: Path) -> None:
    resolved = {}
    for objective in ("forward", "policy_gradient"):
        recipe = read(tmp_path, GOOD | {"stages": [{"stage": "rlcf", "iterations": 3, "objective": objective}]})
        resolved[objective] = yaml.safe_load(dump_recipe(recipe))["stages"][0]
    forward, gradient = resolved["forward"], resolved["policy_gradient"]
    assert (forward["update"], forward["advantage"], forward["sampling"]["eta"], gradient["forward"]) == (None,) * 4
    assert forward["comparison"] == {
        "kind": "win_probability",
        "temperature": 0.5,
        "centre": True,
        "beta": None,
        "baseline_images": 4,
        "pool": None,
    }
    assert gradient["comparison"] | {"temperature": None} == {
        "kind": "margin",
        "temperature": None,
        "centre": None,
        "beta": None,
        "baseline_images": 1,
        "pool": 4,
    }
    assert gradient["sampling"]["eta"] == 1.0
    assert forward["forward"]["timesteps"] == 4


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("stages.0.train.learning_rate=1e300", "found 1e+300, expected at most 1e+30"),
        ("stages.0.train.ace_learning_rate=1e31", "found 1e+31, expected at most 1e+30"),
        ("stages.0.train.weight_decay=1e300", "found 1e+300, expected at most 1e+30"),
        ("stages.0.sampling.guidance=1e300", "found 1e+300, expected at most 1e+30"),
        ("stages.0.forward.strength=1e-300", "found 1e-300, expected 1e-30 or more"),
        ("stages.0.comparison.temperature=1e-300", "found 1e-300, expected 1e-30 or more"),
        ("stages.0.rewards.posture.weight=1e-320", "found 9.99989e-321, expected 1e-30 or more"),
        ("stages.0.sampling.batch_size=100000000", "found 100000000\n  expected: less than or equal to 10000"),
        ("stages.0.forward.timesteps=100000", "found 100000\n  expected: less than or equal to 1000"),
        ("stages.0.comparison.baseline_images=10000000", "found 10000000\n  expected: less than or equal to 1000"),
        ("stages.0.train.lora.alpha=1" + 400 * "0", "expected: less than or equal to 1000000"),
        ("evaluation.images_per_report=100000000", "found 100000000\n  expected: less than or equal to 1000"),
    ],
)
def test_numbers_that_arithmetic_or_memory_cannot_hold_are_refused(
    override: str, expected: str, tmp_path: Path
) -> None:
    """Some ended in a traceback, or never did; others turned into zero."""
    found = refusal(tmp_path, GOOD, override)
    assert found.startswith(f"--set {override.partition('=')[0]}: found ")
    assert expected in found
    assert found.count("--set") == 1


def test_an_iteration_has_no_more_images_than_can_be_planned(tmp_path: Path) -> None:
    found = refusal(tmp_path, GOOD, "stages.0.images_per_report=100000000", "stages.0.reports_per_iteration=2")
    assert "reports_per_iteration 2 x images_per_report 100000000: 200,000,000 images an iteration" in found
    assert "expected: at most 1,000,000" in found


@pytest.mark.parametrize(
    ("override", "found"),
    [
        (
            "stages.0.rewards.posture.backend=[]",
            "stages.0.rewards.posture.backend: found 0 items\n  expected: at least 2",
        ),
        ("stages.0.rewards.posture.backend=", "stages.0.rewards.posture.backend: found nothing\n  expected: a text"),
        ("stages.0.rewards.posture.backend=[a, 3]", "stages.0.rewards.posture.backend.1: found 3\n  expected: a text"),
        ("stages.0.rewards.posture=null", "stages.0.rewards.posture: found nothing\n  expected: a section"),
        ("stages.0.forward=5", "stages.0.forward: found 5\n  expected: a section"),
        ("stages.0=null", "stages.0: found nothing\n  expected: a section"),
        ("stages={}", "stages: found a section\n  expected: a list"),
        ("stages=[]", "stages: found 0 items\n  expected: at least 1"),
        ("trackers=wandb", "trackers: found 'wandb'\n  expected: a list"),
        ("evaluation.evaluator={}", "evaluation.evaluator: found 0 items\n  expected: at least 1"),
        ("evaluation.evaluator=5", "evaluation.evaluator: found 5\n  expected: a text"),
        ("evaluation.evaluator={posture: 3}", "evaluation.evaluator.posture: found 3\n  expected: a text"),
        ("reports.held_out=yes", "reports.held_out: found True\n  expected: a valid integer"),
    ],
)
def test_a_value_of_another_kind_is_one_message_in_the_words_of_a_recipe(
    override: str, found: str, tmp_path: Path
) -> None:
    """A key with two forms had a message for each; places and kinds were those of Python."""
    assert refusal(tmp_path, GOOD, override) == f"--set {found}"
