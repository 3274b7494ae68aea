"""Saving a tuned model and loading it back takes no room on the training device."""

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cxrsynth.diffusion.adapters import add_adapters
from cxrsynth.diffusion.model import DiffusionModel, load_model
from cxrsynth.diffusion.resolve import ResolvedModel, resolve_model
from cxrsynth.settings import Precision
from cxrsynth.tuning import export
from cxrsynth.tuning.export import Trained, save_tuned

CPU = torch.device("cpu")


def tuned(folder: Path, device: torch.device, *, adapters: bool) -> Trained:
    """A model whose weights have moved a little."""
    model = load_model(
        resolve_model(str(folder)), device=device, precision=Precision.FP32, mixed=True, float32_denoiser=not adapters
    )
    torch.manual_seed(0)
    if adapters:
        add_adapters(model.denoiser, model.family.adapted_layers, rank=2, alpha=None, seed=0)
    else:
        model.denoiser.requires_grad_(True)
    weights = {f"unet.{name}": weight for name, weight in model.denoiser.named_parameters() if weight.requires_grad}
    with torch.no_grad():
        for weight in weights.values():
            weight += 1e-2 * torch.randn(weight.shape).to(device)
    return Trained(model, weights, adapters=adapters)


@pytest.mark.parametrize("adapters", [True, False])
def test_models_are_loaded_back_on_the_cpu_and_one_at_a_time(
    adapters: bool, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = tuned(tiny_model, CPU, adapters=adapters)
    # Another device by name, the same memory: what is loaded there can be told from what is loaded on the CPU.
    training_device = torch.device("cpu", 0)
    trained = replace(trained, model=replace(trained.model, device=training_device))
    devices: list[torch.device] = []
    alive: list[int] = []
    loaded: list[weakref.ref[torch.nn.Module]] = []

    def watched(model: ResolvedModel, *, device: torch.device, **given: Any) -> DiffusionModel:
        devices.append(device)
        alive.append(sum(reference() is not None for reference in loaded))
        network = load_model(model, device=device, **given)
        loaded.append(weakref.ref(network.vae))
        return network

    monkeypatch.setattr(export, "load_model", watched)
    save_tuned(trained, tmp_path / "model", source=resolve_model(str(tiny_model)), card="card")
    assert len(devices) == (3 if adapters else 2)  # the source's UNet to merge adapters into; the source; the result
    assert set(devices) == {CPU}
    assert not any(alive)
    assert (tmp_path / "model" / "model_card.md").read_text() == "card"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("adapters", [True, False])
def test_saving_takes_no_more_of_an_accelerator_than_a_step_of_training(
    adapters: bool, tiny_model: Path, tmp_path: Path
) -> None:
    trained = tuned(tiny_model, torch.device("cuda", 0), adapters=adapters)
    model = trained.model
    latents = torch.randn(4, *model.latent_shape, device=model.device)
    condition, _ = model.encode(["chest"] * 4)
    torch.cuda.reset_peak_memory_stats()
    model.predict(latents, torch.tensor(500, device=model.device), condition).sum().backward()
    step = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    save_tuned(trained, tmp_path / "model", source=resolve_model(str(tiny_model)), card="card")
    assert torch.cuda.max_memory_allocated() <= step
