"""A model that was fine-tuned on twenty images is caught by the attacks; one that never saw them is not."""

import csv
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cxrsynth.cli import app
from cxrsynth.metrics.membership.attacks import PROXIMAL
from cxrsynth.metrics.membership.inference import COMBINED
from cxrsynth.nano.build.example_reports import main as write_reports

pytestmark = pytest.mark.slow

# With this many and 80 steps of 8 images, three seeds gave 0.66 to 0.78 (proximal, low end) and 0.70 to 0.93
# (combined); with 60 steps, one of them gave 0.54 and 0.64, too close to what is expected below.
EACH = 20


def run(*arguments: object) -> None:
    done = CliRunner().invoke(app, [str(one) for one in arguments])
    assert done.exit_code == 0, done.output


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of one source in two halves, and nano fine-tuned on the first."""
    home = tmp_path_factory.mktemp("planted")
    write_reports(home / "reports.csv", rows=2 * EACH, seed=8)
    key = (
        home / "id.key"
    )  # images are divided by keys that depend on it: another one in each run divides them otherwise
    key.write_text("0123456789abcdef" * 2)
    key.chmod(0o600)
    run("generate", home / "reports.csv", "--out", home / "set", "--model", "nano-fast", "--id-key", key)
    with tarfile.open(home / "set" / "cxr-000000.tar") as shard:
        content = {member.name: shard.extractfile(member).read() for member in shard}  # type: ignore[union-attr]
    images = sorted(name for name in content if name.endswith(".png"))
    for side, names in (("members", images[:EACH]), ("others", images[EACH:])):
        (home / side).mkdir()
        rows = [["filename", "report"]]
        for name in names:
            (home / side / name).write_bytes(content[name])
            rows.append([name, json.loads(content[name.removesuffix(".png") + ".json"])["prompt"]])
        with (home / f"{side}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
    (home / "audited").mkdir()
    for name in images[-2:]:  # an audit scores images, too, which this is not about
        (home / "audited" / name).write_bytes(content[name])
    (home / "recipe.yaml").write_text(
        f"""
model: {{checkpoint: nano}}
reports: {{table: {home / "reports.csv"}, held_out: 2, test: 0}}
stages:
  - stage: sft
    data: {home / "members"}
    table: {home / "members.csv"}
    steps: 80
    batch_size: 8
    micro_batch: 8
    train: {{unet: full, learning_rate: 1.0e-3, ema_decay: null}}
evaluation: {{every: 80, reports: 2, steps: 2, sheet: 0}}
"""
    )
    run("tune", home / "recipe.yaml", "--out", home / "run")
    return home


def attacked(home: Path, model: object, out: Path) -> dict[str, Any]:
    options: list[object] = ["--out", out, "--model", model]
    for option, side in (("members", "members"), ("non-members", "others")):
        options += [f"--{option}", home / side, f"--{option}-table", home / f"{side}.csv"]
    run("audit", home / "audited", *options)
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())["membership"]["attacks"]
    return found


def test_only_the_model_that_saw_them_gives_its_images_away(home: Path, tmp_path: Path) -> None:
    caught = attacked(home, home / "run" / "model", tmp_path / "caught")
    assert caught[PROXIMAL]["auc"]["low"] > 0.55, caught
    assert caught[COMBINED]["auc"]["value"] > 0.65, caught
    innocent = attacked(home, "nano", tmp_path / "innocent")
    for name, attack in innocent.items():
        assert attack["auc"]["low"] < 0.5 < attack["auc"]["high"], (name, attack)
    assert caught["without the model"] == innocent["without the model"]
