"""Prompt templates and negative prompts of `generate`, through the command line."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import cxrsynth
from cxrsynth.cli import app
from cxrsynth.diffusion import model as diffusion
from tests.conftest import build_tiny_model
from tests.generation.making import command, hashes, manifest, members, metadata, write_table

HEADER = ("report_id", "impression", "view", "sex", "age", "race", "site note")
ROWS = (
    ("QZX-1", "Left effusion.", "PA", "F", "61", "WHITE", "portable"),
    ("QZX-2", "Clear lungs.", "AP", "M", "93", "", "Dr. Quibbleton 03/14/2019"),
    ("QZX-3", "Heart size is normal.", "", "", "", "ASIAN", ""),
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("tables") / "reports.csv", ROWS, HEADER)


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With room for more tokens than the one of all tests, so that no prompt is cut."""
    return build_tiny_model(tmp_path_factory.mktemp("models") / "tiny", max_tokens=64)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Each prompt that reaches the text encoder, with the negative prompt beside it."""
    found: list[tuple[str, str]] = []
    encode = diffusion.DiffusionModel.encode

    def spy(self: diffusion.DiffusionModel, prompts: Any) -> Any:
        found.extend((prompt, self.negative_prompt) for prompt in prompts)
        return encode(self, prompts)

    monkeypatch.setattr(diffusion.DiffusionModel, "encode", spy)
    return found


def described(model: Path, folder: Path, **spec: Any) -> Path:
    shutil.copytree(model, folder)
    (folder / "cxrsynth.json").write_text(json.dumps(spec), encoding="utf-8")
    return folder


def run(arguments: list[str], code: int = 0) -> str:
    result = CliRunner().invoke(app, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    text = result.stdout + result.stderr
    assert result.exit_code == code, text
    assert code == 0 or text.count("error:") == 1
    return text


def pictures(folder: Path) -> list[bytes]:
    return [content for name, content in sorted(members(folder).items()) if name.endswith(".png")]


def test_prompts_follow_the_template(
    table: Path, tiny_model: Path, tmp_path: Path, asked: list[tuple[str, str]]
) -> None:
    out = tmp_path / "out"
    text = run(command(table, out, tiny_model, "--prompt-template", "[[{age} year old ][{race} ]{sex}. ]{impression}"))
    # No age above 89.
    assert {prompt for prompt, _ in asked} == {
        "61 year old WHITE female. Left effusion.",
        "male. Clear lungs.",
        "Heart size is normal.",
    }
    plan = manifest(out)["plan"]
    assert plan["prompt"] == "template"
    assert plan["prompt_template"] == "[[{age} year old ][{race} ]{sex}. ]{impression}"
    assert all(sample["prompt_style"] == "template" and "prompt" not in sample for sample in metadata(out).values())
    everything = text + "".join(content.decode("latin-1") for content in members(out).values()) + str(manifest(out))
    for secret in ("effusion.", "Clear lungs", "WHITE", "ASIAN", "QZX", "Quibbleton"):
        assert secret not in everything


def test_columns_by_name_are_sanitized(
    table: Path, tiny_model: Path, tmp_path: Path, asked: list[tuple[str, str]]
) -> None:
    out = tmp_path / "out"
    run(command(table, out, tiny_model, "--prompt-template", "{impression}[ Note: {site note}]"))
    assert "Left effusion. Note: portable" in [prompt for prompt, _ in asked]
    assert not any("Quibbleton" in prompt or "2019" in prompt for prompt, _ in asked)
    assert manifest(out)["sanitized"]["date"] == 1


def test_without_a_template_nothing_is_new(table: Path, tiny_model: Path, tmp_path: Path) -> None:
    run(command(table, tmp_path / "plain", tiny_model))
    plan = manifest(tmp_path / "plain")["plan"]
    assert plan["prompt"] == "impression"
    assert "prompt_template" not in plan
    assert "negative_prompt" not in plan["sampling"]
    # An empty negative prompt is none.
    run(command(table, tmp_path / "plain", tiny_model, "--negative-prompt", ""))
    # The template of one field makes the same images.
    run(command(table, tmp_path / "template", tiny_model, "--prompt-template", "roentgen"))
    assert pictures(tmp_path / "template") == pictures(tmp_path / "plain")
    assert hashes(tmp_path / "template") != hashes(tmp_path / "plain")


def test_another_template_cannot_resume(table: Path, tiny_model: Path, tmp_path: Path) -> None:
    out, template = tmp_path / "out", "[{sex}. ]{impression}"
    run(command(table, out, tiny_model, "--prompt-template", template))
    assert "already complete" in run(command(table, out, tiny_model, "--prompt-template", template))
    assert "prompt_template" in run(command(table, out, tiny_model, "--prompt-template", "{impression}"), 2)
    assert "prompt" in run(command(table, out, tiny_model), 2)
    assert "negative_prompt" in run(
        command(table, out, tiny_model, "--prompt-template", template, "--negative-prompt", "clear"), 2
    )


def test_the_models_template_is_the_default(
    table: Path, tiny_model: Path, tmp_path: Path, asked: list[tuple[str, str]]
) -> None:
    model = described(tiny_model, tmp_path / "model", prompt_template="roentgen-v2", negative_prompt="effusion")
    run(command(table, tmp_path / "own", model))
    assert ("male. Clear lungs.", "effusion") in asked
    assert manifest(tmp_path / "own")["plan"]["sampling"]["negative_prompt"] == "effusion"
    asked.clear()
    run(command(table, tmp_path / "style", model, "--prompt", "impression", "--negative-prompt", ""))
    assert ("Clear lungs.", "") in asked
    assert manifest(tmp_path / "style")["plan"]["prompt"] == "impression"
    asked.clear()
    run(command(table, tmp_path / "template", model, "--prompt-template", "{impression}[ {view}]"))
    assert ("Clear lungs. AP", "effusion") in asked


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--prompt-template", "{impression"), "--prompt-template: character 1"),
        (("--prompt-template", ""), "--prompt-template: empty"),
        (("--prompt-template", "{impression}[{sex}"), r"expected: ']' after it, or \[ for the sign itself"),
        (("--prompt-template", "{impressions}"), "did you mean: impression\n"),
        (("--prompt-template", "{report_id}"), "a column of ids"),
        (("--prompt-template", "{impression}", "--prompt", "report"), "found both"),
        (("--negative-prompt", "clear", "--guidance", "1"), "--negative-prompt: does nothing at guidance 1"),
        (("--race-column", "nope"), "column 'nope' not found"),
    ],
)
def test_what_cannot_be_used_is_refused(
    options: tuple[str, ...], message: str, table: Path, tiny_model: Path, tmp_path: Path
) -> None:
    assert message in run(command(table, tmp_path / "out", tiny_model, *options), 2)
    assert not (tmp_path / "out").exists()


def test_a_negative_prompt_too_long_is_refused(table: Path, tiny_model: Path, tmp_path: Path) -> None:
    text = run(command(table, tmp_path / "out", tiny_model, "--negative-prompt", "clear lungs " * 30), 2)
    assert "the negative prompt has more tokens" in text


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"prompt_template": "[{impression}"}, "prompt_template: character 1 of '[{impression}': found '['"),
        ({"prompt_template": "roentgen3"}, "prompt_template: 'roentgen3': no preset"),
        ({"prompt_template": "roentgen", "prompt": "report"}, "prompt and prompt_template: found both"),
        ({"negative_prompt": 3}, "negative_prompt: Input should be a valid string"),
    ],
)
def test_a_wrong_description_of_a_model(
    spec: dict[str, Any], message: str, table: Path, tiny_model: Path, tmp_path: Path
) -> None:
    text = run(command(table, tmp_path / "out", described(tiny_model, tmp_path / "model", **spec)), 2)
    assert "cxrsynth.json: not a valid model description" in text.replace("\n", "")
    assert message in " ".join(text.split())


def test_a_negative_prompt_of_the_model_needs_guidance(table: Path, tiny_model: Path, tmp_path: Path) -> None:
    model = described(tiny_model, tmp_path / "model", negative_prompt="effusion")
    text = run(command(table, tmp_path / "out", model, "--guidance", "1"), 2)
    assert "negative_prompt: does nothing at guidance 1" in " ".join(text.split())
    run(command(table, tmp_path / "out", model, "--guidance", "1", "--negative-prompt", ""))


def test_a_negative_prompt_changes_the_images_and_is_recorded(table: Path, tiny_model: Path, tmp_path: Path) -> None:
    run(command(table, tmp_path / "plain", tiny_model))
    run(command(table, tmp_path / "negative", tiny_model, "--negative-prompt", "clear lungs"))
    assert not set(pictures(tmp_path / "plain")) & set(pictures(tmp_path / "negative"))
    samples = metadata(tmp_path / "negative").values()
    assert {sample["sampling"]["negative_prompt"] for sample in samples} == {"clear lungs"}


def test_the_function_takes_what_the_command_takes(table: Path, tiny_model: Path, tmp_path: Path) -> None:
    options = ("--prompt-template", "{impression}[ {race}]", "--race-column", "site note", "--negative-prompt", "clear")
    run(command(table, tmp_path / "command", tiny_model, *options))
    cxrsynth.generate(
        table,
        tmp_path / "function",
        model=str(tiny_model),
        steps=2,
        shard_size=3,
        batch_size=2,
        device="cpu",
        precision="fp32",
        prompt_template="{impression}[ {race}]",
        columns={"race": "site note"},
        negative_prompt="clear",
        keep_order=True,
    )
    assert hashes(tmp_path / "function") == hashes(tmp_path / "command")
