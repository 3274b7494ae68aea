"""Text encoders saved by any release of transformers load with their own weights, never with random ones."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cxrsynth.diffusion.model import load_model
from cxrsynth.diffusion.resolve import resolve_model
from cxrsynth.errors import ModelError
from cxrsynth.runtime.clip import load_text_encoder
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


def test_a_text_encoder_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    model = build_tiny_model(tmp_path / "model")
    weights = model / "text_encoder" / "model.safetensors"
    state = load_file(weights)
    save_file({name: value for name, value in state.items() if "fc1" not in name}, weights, metadata={"format": "pt"})
    resolved = resolve_model(str(model))
    with pytest.raises(ModelError, match="fc1"):
        load_model(resolved, device=torch.device("cpu"), precision=Precision.FP32)
