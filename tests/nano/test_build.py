"""The nano build on a few random images and networks of a few channels: staged, seeded, resumable."""

import csv
import io
import json
import random
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from cxrsynth.nano.build import __main__ as build
from cxrsynth.nano.build import autoencoder, decoder, denoiser, fitting
from cxrsynth.nano.build.__main__ import main
from cxrsynth.nano.build.config import TextSettings, load_config
from cxrsynth.nano.build.images import GROUPS, SMALL_GROUPS, Radiograph, caption, load_images
from cxrsynth.nano.build.reward_models import FAMILIES
from cxrsynth.nano.build.training import forward_context
from cxrsynth.reports.prompt import Subject

# What cxrsynth[build] asks for: a tokenizer trained from nothing.
pytest.importorskip("transformers", minversion="5.0")

COLUMNS = ("id", "patient_id", "licence_tier", "split", "view", "labels", "age", "sex", "fit")
FIT = {
    "size": 64,
    "steps": 4,
    "batch_size": 4,
    "learning_rate": 1.0e-3,
    "weight_decay": 0.05,
    "shift": 0.1,
    "zoom": 0.1,
    "rotation_rad": 0.1,
    "gamma": 0.4,
}
CONFIG = {
    "seed": 0,
    "image_size": 32,
    "save_every": 2,
    "parts": 2,
    "autoencoder": {
        "channels": [8, 8],
        "latent_channels": 4,
        "steps": 4,
        "batch_size": 2,
        "crop": 16,
        "learning_rate": 1.0e-3,
        "kl_weight": 1.0e-6,
    },
    "align": {
        "rounds": 1,
        "steps": 2,
        "learning_rate": 0.05,
        "stay": 0.02,
        "zoom": 0.9,
        "centre": [0.0, 0.0],
        "beyond": 1.0,
    },
    "text": {"vocab_size": 400, "max_tokens": 64, "width": 16, "layers": 1, "heads": 2},
    "denoiser": {
        "channels": [32, 32],
        "share": {"hannover": 0.0},
        "steps": 4,
        "more_steps": 3,
        "batch_size": 2,
        "learning_rate": 1.0e-3,
        "ema_decay": 0.9,
        "variants": 2,
        "captions": 2,
        "varied": 0.5,
        "unconditional": 0.1,
        "rotation_deg": 3.0,
        "zoom": 0.05,
        "shift": 0.03,
    },
    "reward_models": {
        "trunks": [
            {"kind": "densenet", "widths": [8, 4], "depths": [1, 1]},
            {"kind": "resnet", "widths": [8, 8], "depths": [1, 1]},
        ],
        "least_shown": 1,
        "posture_reach": [0.25, 0.25, 0.25, 0.25, 0.3],
        "text": {"vocab_size": 500, "max_tokens": 64, "width": 16, "layers": 1, "heads": 2},
        "classifier": FIT,
        "posture": FIT,
        "dual_encoder": FIT,
        "distillation": {
            "trunks": [{"kind": "resnet", "widths": [8, 8], "depths": [1, 1]}],
            "classifier": FIT | {"noise": 0.04, "erase": 0.5},
            "dual_encoder": FIT | {"noise": 0.04, "erase": 0.5},
        },
    },
    "decoder": {
        "steps": 4,
        "batch_size": 2,
        "crop": 16,
        "learning_rate": 1.0e-3,
        "width": 8,
        "feature_weight": 1.0,
        "adversarial_weight": 0.1,
        "blend": 0.9,
    },
    "measure": {"images": 10, "pairs": 4},
    "min_shown": 2,
    "defaults": {"steps": 2, "guidance": 2.0, "sampler": "dpm++"},
}


def write_images(data: Path, *, tier: str = "open", size: int = 32) -> Path:
    """Six groups of five images of `size` pixels, the last two of each in split `val`."""
    rng = np.random.default_rng(0)
    (data / "images").mkdir(parents=True)
    (data / "manifests").mkdir()
    for group_index, group in enumerate((*GROUPS, *SMALL_GROUPS)):
        with (
            tarfile.open(data / "images" / f"{group}.tar", "w") as tar,
            (data / "manifests" / f"{group}.csv").open("w", newline="") as file,
        ):
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            for place in range(5):
                jpeg = io.BytesIO()
                Image.fromarray(rng.integers(20, 120, (size, size), dtype=np.uint8)).save(jpeg, "JPEG")
                info = tarfile.TarInfo(f"{group}-{place}.jpg")
                info.size = len(jpeg.getvalue())
                tar.addfile(info, io.BytesIO(jpeg.getvalue()))
                # The images of val differ from group to group.
                ill = (group_index + place) % 2 == 1 if place > 2 else place % 2 == 1
                labels = "Effusion|Pneumonia" if ill else "No Finding"
                split = "val" if place > 2 else "train"
                row = (f"{group}-{place}", f"{group}-patient-{place}", tier, split, "PA", labels, "40", "F", "crop")
                writer.writerow(dict(zip(COLUMNS, row, strict=True)))
    return data


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


@pytest.mark.parametrize(
    ("multiplies", "capabilities", "dtype"),
    [
        (True, {}, torch.bfloat16),
        (False, {}, torch.float32),
        (True, {"avx512_fp16": True, "amx_bf16": True}, torch.bfloat16),
        (True, {"avx512_fp16": True, "amx_bf16": False}, torch.float32),
    ],
    ids=["yes", "no", "with AMX", "with AMX hidden"],
)
def test_a_build_uses_bfloat16_only_where_the_cpu_is_faster_with_it(
    multiplies: bool, capabilities: dict[str, bool], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: multiplies, raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    with forward_context():
        product = torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2))
    assert product.dtype is dtype


def test_only_open_images_may_train(tmp_path: Path) -> None:
    data = write_images(tmp_path / "data", tier="nc")
    with pytest.raises(ValueError, match="only 'open' may train"):
        load_images(data, size=32)


def test_gray_levels_are_stretched_and_labels_mapped(tmp_path: Path) -> None:
    radiographs, pixels = load_images(write_images(tmp_path / "data"), size=32)
    assert pixels.shape == (15, 1, 32, 32)
    assert pixels.min() == 0
    assert pixels.max() == 255
    assert radiographs[1].present == ("Pneumonia", "Pleural Effusion")
    assert "Lung Opacity" not in radiographs[1].absent  # pneumonia is a lung opacity
    assert "Pneumothorax" in radiographs[1].absent


@pytest.mark.slow
def test_an_interrupted_build_equals_one_never_stopped(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_images(tmp_path / "data")
    main(data=data, work=tmp_path / "whole", out=tmp_path / "model", config=config)
    # Training the tokenizer breaks ties at random: only the networks must be equal.
    for folder in ("tokenizer", "judges/tokenizer"):
        shutil.copytree(tmp_path / "whole" / folder, tmp_path / "halted" / folder)
    for module in (autoencoder, denoiser, fitting, decoder):
        save = module.save_state

        def save_then_stop(path: Path, *, step: int, save: object = save, **state: object) -> None:
            save(path, step=step, **state)  # type: ignore[operator]
            if step == 2:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(module, "save_state", save_then_stop)
            with pytest.raises(KeyboardInterrupt):
                main(data=data, work=tmp_path / "halted", out=tmp_path / "again", config=config)
    main(data=data, work=tmp_path / "halted", out=tmp_path / "again", config=config)
    for part in ("unet", "vae", "text_encoder"):
        [whole] = (tmp_path / "model" / part).glob("*.safetensors")
        [again] = (tmp_path / "again" / part).glob("*.safetensors")
        expected = load_file(whole)
        found = load_file(again)
        assert all(found[name].equal(expected[name]) for name in expected), part
    for network in ("classifier", "posture", "dual_encoder"):
        for family in FAMILIES:
            files = [tmp_path / run / "judges" / family / network / "model.safetensors" for run in ("whole", "halted")]
            expected, found = map(load_file, files)
            assert all(found[name].equal(expected[name]) for name in expected), (family, network)
    spec = json.loads((tmp_path / "model" / "cxrsynth.json").read_text())
    assert spec["depicts"]["findings"] == {"No Finding": 10, "Pleural Effusion": 5, "Pneumonia": 5}
    assert spec["defaults"] == CONFIG["defaults"]
    assert "Pneumonia | 5" in (tmp_path / "model" / "model_card.md").read_text()


@pytest.mark.slow
def test_a_build_continues_from_a_model_folder(tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, first, second = write_images(tmp_path / "data"), tmp_path / "first", tmp_path / "second"
    main(data=data, work=tmp_path / "work", out=first, config=config)
    started = []

    def training(*arguments: object, **settings: object) -> object:
        started.append(settings["start"])
        return train(*arguments, **settings)  # type: ignore[arg-type]

    train = build.train_denoiser
    monkeypatch.setattr(build, "train_denoiser", training)
    main(data=data, work=tmp_path / "more", out=second, config=config, start=first)
    with Image.open(tmp_path / "work" / "sheet.png") as sheet:  # contact sheet of the ten measured images
        assert sheet.size == (10 * sheet.height, sheet.height)
        low, high = sheet.getextrema()
        assert low < high
    [start] = started
    known = load_file(first / "unet" / "diffusion_pytorch_model.safetensors")
    taken = load_file(start / "unet" / "diffusion_pytorch_model.safetensors")
    learned = load_file(second / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(taken[name].half().equal(weights) for name, weights in known.items())
    assert not all(learned[name].equal(weights) for name, weights in known.items())
    # A few steps at a small learning rate; another start would be far away.
    assert all((learned[name] - weights).abs().max() < 0.02 for name, weights in known.items())
    for kept in ("vae/diffusion_pytorch_model.safetensors", "judges/nano/classifier/model.safetensors"):
        assert (first / kept).read_bytes() == (second / kept).read_bytes()
    assert "denoiser 4 and, each with a new learning-rate schedule, 3 more" in (second / "model_card.md").read_text()
    assert "more" not in (first / "model_card.md").read_text().split("denoiser 4")[1].splitlines()[0]


@pytest.mark.slow
def test_the_reward_models_of_a_model_folder_are_distilled_further_and_nothing_else_changes(
    tmp_path: Path, config: Path
) -> None:
    data, first, second = write_images(tmp_path / "data"), tmp_path / "first", tmp_path / "second"
    main(data=data, work=tmp_path / "work", out=first, config=config)
    for stage in (build.Stage.REWARD_MODELS, build.Stage.EXPORT, build.Stage.MEASURE):
        main(data=data, work=tmp_path / "more", out=second, config=config, start=first, only=stage)
    changed = {
        str(path.relative_to(first))
        for path in first.rglob("*.safetensors")
        if path.read_bytes() != (second / path.relative_to(first)).read_bytes()
    }
    assert changed == {f"judges/nano/{network}/model.safetensors" for network in ("classifier", "dual_encoder")}
    assert json.loads((second / "numbers.json").read_text())["denoiser_steps"] == [4]


@pytest.mark.slow
def test_a_build_that_continues_twice_lists_all_its_steps(tmp_path: Path, config: Path) -> None:
    data, model = write_images(tmp_path / "data"), tmp_path / "model"
    main(data=data, work=tmp_path / "work", out=model, config=config)
    for again in ("second", "third"):
        main(data=data, work=tmp_path / again, out=tmp_path / f"{again}-model", config=config, start=model)
        model = tmp_path / f"{again}-model"
    assert json.loads((model / "numbers.json").read_text())["denoiser_steps"] == [4, 3, 3]
    assert "schedule, 3, 3 more" in (model / "model_card.md").read_text()


def test_captions_are_canonical_except_for_a_share_and_small_images_are_marked() -> None:
    settings = load_config(Path(build.__file__).with_name("config.yaml")).denoiser
    radiographs = [
        Radiograph(g, g, g, Subject(view="PA", sex="F"), ("Edema",), (), padded=False)
        for g in ("nih", "nih64")
        for _ in range(50)
    ]

    def canonical(texts: list[list[str]]) -> float:
        words = {"PA view", "Female patient", "Lung opacity", "Pulmonary edema", "Low resolution"}
        matches = [set(text.rstrip(".").split(". ")) <= words | {""} for several in texts for text in several]
        return sum(matches) / len(matches)

    def texts_of(varied: float, *, room: int = 64) -> list[list[str]]:
        tokenizer = denoiser.make_tokenizer(TextSettings(vocab_size=768, max_tokens=room, width=1, layers=1, heads=1))
        return denoiser._captions(radiographs, tokenizer, settings.model_copy(update={"varied": varied}), seed=0)

    texts = texts_of(0.25)
    assert 0.7 < canonical(texts) < 0.85  # some phrases of the grammar are canonical too
    assert canonical(texts_of(0.0)) == 1.0
    assert canonical(texts_of(1.0, room=8)) > 0.95  # a text that would be cut is replaced by the canonical prompt
    sized = denoiser._sized(radiographs, texts)
    assert sized[:50] == texts[:50]
    assert all(text.endswith("Low resolution.") for several in sized[50:] for text in several)
    assert [[text.removesuffix("Low resolution.").strip() for text in several] for several in sized[50:]] == texts[50:]


def test_any_kind_of_opacity_is_sometimes_called_lung_opacity() -> None:
    def captions(*present: str) -> list[str]:
        radiograph = Radiograph("f", "p", "nih", Subject(), present, ("Edema",), padded=False)
        rng = random.Random(0)
        return [caption(radiograph, rng) for _ in range(400)]

    pneumonia, effusion = captions("Pneumonia"), captions("Pleural Effusion")
    called = [text for text in pneumonia if "Lung opacity." in text]
    assert 40 < len(called) < 160
    assert 0 < sum("Pneumonia." in text for text in called) < len(called)
    assert not any("opacity" in text.lower() for text in effusion)
    whole = caption(
        Radiograph("f", "p", "nih", Subject(), ("Pneumonia",), (), padded=False), random.Random(0), whole=True
    )
    assert whole == "Pneumonia."
