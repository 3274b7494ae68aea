"""metrics.jsonl: a line that is not a row does no harm to the others; rows of earlier versions are never mixed in."""

from pathlib import Path

import pytest

from cxrsynth.errors import RecipeError
from cxrsynth.tuning.metrics import Metrics
from cxrsynth.tuning.run_folder import RunFolder


def test_a_resume_keeps_every_whole_row(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    rows = [{"stage": 0, "iteration": iteration, "images": 4} for iteration in (1, 2, 3)]
    metrics.write(rows[0])
    with metrics.path.open("a", encoding="utf-8") as file:
        file.write('{"note": "not a row"}\n[1]\n{"stage": 0, "iteration": null}\n')
    with metrics.path.open("ab") as raw:
        raw.write(b"\xff\xfe\n")
    for row in rows[1:]:
        metrics.write(row)
    with metrics.path.open("a", encoding="utf-8") as file:
        file.write('{"stage": 0, "iterat')  # a kill
    assert metrics.rows() == rows
    metrics.cut(stage=0, iteration=2)
    assert metrics.rows() == rows[:2]


@pytest.mark.parametrize("damage", ["a digit", "a line", "the file"])
def test_rows_that_changed_since_a_checkpoint_are_noticed(damage: str, tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    for iteration in (1, 2):
        metrics.write({"stage": 0, "iteration": iteration, "reward/a/mean": 0.5})
    known = metrics.state()
    metrics.write({"stage": 0, "iteration": 3, "reward/a/mean": 0.5})
    metrics.write({"stage": 0, "iteration": 2, "test/ms_ssim": 0.5})
    metrics.cut(stage=0, iteration=2)
    assert len(metrics.rows()) == 2
    assert metrics.begins_with(known)
    text = metrics.path.read_text()
    if damage == "a digit":
        metrics.path.write_text(text.replace("0.5", "0.7", 1))
    elif damage == "a line":
        metrics.path.write_text(text.partition("\n")[2])
    else:
        metrics.path.unlink()
    assert not metrics.begins_with(known)


def test_a_run_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    """Its metrics have other names: `evaluation/judge/...`."""
    stage = "{stage: ddpo, iterations: 1, train: {ace: {subspace: 4, explore: 0.3}}}"
    former = f"reports: {{table: r.csv}}\nstages: [{stage}]\nevaluation: {{judge: nano-judge}}\n"
    (tmp_path / "recipe.yaml").write_text(former)
    with pytest.raises(RecipeError) as error:
        RunFolder(tmp_path).check(former.replace("explore", "exploration_std").replace("judge:", "evaluator:"))
    assert "an earlier version of cxrsynth (explore is now exploration_std, judge is now evaluator)" in str(error.value)
