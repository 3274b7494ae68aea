"""metrics.jsonl: what is no row costs no other row."""

from pathlib import Path

from cxrsynth.tuning.metrics import Metrics


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
