"""Text encoders saved by any release of transformers load with their own weights, never with random ones."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from cxrsynth.diffusion.model import load_model
from cxrsynth.diffusion.resolve import resolve_model
from cxrsynth.errors import ModelError
from cxrsynth.runtime.clip import load_text_encoder
from cxrsynth.runtime.pretrained import Unmatched
from cxrsynth.settings import Precision
from tests.conftest import build_tiny_model


@pytest.mark.parametrize("prefix", ["text_model.", ""])
def test_a_text_encoder_loads_under_the_names_of_any_release(prefix: str, tiny_model: Path, tmp_path: Path) -> None:
    source = tiny_model / "text_encoder"
    state = load_file(source / "model.safetensors")
    renamed = {prefix + name.removeprefix("text_model."): value for name, value in state.items()}
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    found = load_text_encoder(tmp_path).state_dict()
    assert {name.removeprefix("text_model.") for name in found} >= {name.removeprefix("text_model.") for name in state}
    for name, value in state.items():
        name = name if name in found else name.removeprefix("text_model.")
        torch.testing.assert_close(found[name if name in found else f"text_model.{name}"], value)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("prefix", ["text_model.", ""])
def test_tensors_that_a_text_encoder_has_no_use_for_are_accepted(
    prefix: str, known: bool, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Position numbers of earlier releases, and the other parts of a whole CLIP."""
    source = tiny_model / "text_encoder"
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    state = load_file(source / "model.safetensors")
    state = {prefix + name.removeprefix("text_model."): value for name, value in state.items()}
    further = {
        f"{prefix}embeddings.position_ids": torch.arange(24)[None],
        "vision_model.post_layernorm.weight": torch.ones(4),
        "logit_scale": torch.ones(()),
    }
    save_file(state | further, tmp_path / "model.safetensors", metadata={"format": "pt"})
    expected = load_text_encoder(source).state_dict()
    if not known:  # as by a release that knows none of these names
        untrained = CLIPTextModel(CLIPTextConfig.from_pretrained(source))
        unmatched = Unmatched(frozenset(untrained.state_dict()), unexpected=frozenset(state))
        monkeypatch.setattr("cxrsynth.runtime.clip.load_unchecked", lambda *_, **__: (untrained, unmatched))
    found = load_text_encoder(tmp_path).state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_a_text_encoder_that_does_not_match_is_refused(tmp_path: Path) -> None:
    model = build_tiny_model(tmp_path / "model")
    weights = model / "text_encoder" / "model.safetensors"
    state = load_file(weights)
    name = next(name for name in sorted(state) if "fc1.bias" in name)
    resolved = resolve_model(str(model))

    def refused(changed: dict[str, torch.Tensor]) -> str:
        save_file(changed, weights, metadata={"format": "pt"})
        with pytest.raises(ModelError, match=r"fc1\.bias") as error:
            load_model(resolved, device=torch.device("cpu"), precision=Precision.FP32)
        assert str(error.value).startswith(f"{model / 'text_encoder'}: cannot be loaded as CLIP's text encoder: ")
        return str(error.value)

    assert "missing" in refused({other: value for other, value in state.items() if other != name})
    assert "of another shape" in refused(state | {name: torch.zeros(3)})
    assert "does not have" in refused(state | {name + ".lora": torch.zeros(3)})
