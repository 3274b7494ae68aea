"""Models in the forms they are published in: once converted, their images are those of the source's pipeline."""

import json
import pickle
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

import cxrsynth
from cxrsynth.cli import app
from cxrsynth.conversion.weights import read_weights, write_weights
from cxrsynth.errors import ModelError, ShardError
from tests.conversion.published import ldm_state, pickle_parts, prefixed, sd3_to_single, vae_to_ldm, without_weights
from tests.diffusion.test_additions import by_diffusers, images_of, loaded
from tests.families import autoencoder, build, stable_diffusion
from tests.generation.making import hashes

_YAML = {
    "model": {
        "params": {
            "linear_start": 0.0015,
            "linear_end": 0.0295,
            "timesteps": 1000,
            "image_size": 8,
            "scale_factor": 0.3,
            "unet_config": {
                "params": {
                    "image_size": 32,  # the first Stable Diffusion's files have it, and do not use it
                    "in_channels": 4,
                    "out_channels": 4,
                    "model_channels": 32,
                    "channel_mult": [1, 2],
                    "num_res_blocks": 1,
                    "attention_resolutions": [2],
                    "num_head_channels": 16,
                    "use_spatial_transformer": True,
                    "context_dim": 16,
                }
            },
            "first_stage_config": {
                "params": {
                    "ddconfig": {
                        "in_channels": 1,
                        "out_ch": 1,
                        "ch": 32,
                        "ch_mult": [1, 1],
                        "num_res_blocks": 1,
                        "z_channels": 4,
                    }
                }
            },
        }
    }
}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection can be made, and the hub's libraries do not know that they are to stay offline."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("families")
    return {name: build(name, home / name) for name in ("stable_diffusion", "sdxl")}


def of_source(folder: Path) -> Tensor:
    left_out = {} if "sdxl" in folder.name else {"safety_checker": None}
    return by_diffusers(DiffusionPipeline.from_pretrained(folder, **left_out))


def one_file(folder: Path, path: Path, **given: Any) -> Path:
    """A checkpoint with what training leaves beside the weights."""
    state = ldm_state(folder, **given)
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "global_step": 7, "optimizer_states": [{"lr": 1e-4}]}, path)
    return path


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("name", ["stable_diffusion", "sdxl"])
def test_a_folder_of_pickled_parts(name: str, shards: int, folders: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(folders[name], source)
    pickle_parts(source, shards=shards)
    (source / "cxrsynth.json").write_text('{"name": "old", "prompt": "findings"}')
    (source / "model.ckpt").write_bytes(b"a checkpoint beside the parts")
    (source / "pipeline.py").write_text("raise SystemExit")
    done = cxrsynth.convert(source, tmp_path / "out", name="new")
    model = loaded(tmp_path / "out")
    torch.testing.assert_close(images_of(model), of_source(folders[name]), atol=1e-4, rtol=0)
    assert (done.model, done.digest, model.name) == (tmp_path / "out", model.digest, "new")
    assert model.spec.prompt == "findings"
    left = {path.suffix for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert left <= {".json", ".safetensors", ".txt"}
    assert {path.name for path in tmp_path.iterdir()} == {"source", "out"}


def test_a_link_to_a_file_that_is_not_there_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(folders["stable_diffusion"], source)
    pickle_parts(source, shards=1)
    (source / "unet" / "config.json").unlink()
    (source / "unet" / "config.json").symlink_to("../../blobs/abc")
    with pytest.raises(ModelError, match=r"unet/config\.json: a link to \.\./\.\./blobs/abc, which is not there"):
        cxrsynth.convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_weights_in_half_precision_stay_so(folders: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "source"
    pipeline = DiffusionPipeline.from_pretrained(folders["stable_diffusion"], safety_checker=None)
    pipeline.unet.half()
    pipeline.unet.save_pretrained(tmp_path / "half", safe_serialization=False, variant="fp16")
    shutil.copytree(folders["stable_diffusion"], source)
    (source / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    shutil.copy(tmp_path / "half" / "diffusion_pytorch_model.fp16.bin", source / "unet")
    cxrsynth.convert(source, tmp_path / "out")
    written = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.float16}


@pytest.mark.parametrize("suffix", [".ckpt", pytest.param(".safetensors", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("name", "text"), [("stable_diffusion", "clip"), ("stable_diffusion", "open_clip"), ("sdxl", "sdxl")]
)
def test_one_file_in_the_layout_of_latent_diffusion(
    name: str, text: str, suffix: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    source = one_file(folders[name], tmp_path / f"model{suffix}", text=text)
    base = without_weights(folders[name], tmp_path / "base")
    cxrsynth.convert(source, tmp_path / "out", base=base)
    found = images_of(loaded(tmp_path / "out"))
    torch.testing.assert_close(found, of_source(folders[name]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("alone", [False, True])
def test_one_file_of_stable_diffusion_3(alone: bool, tmp_path: Path) -> None:
    folder = build("sd3", tmp_path / "sd3")
    pipeline = DiffusionPipeline.from_pretrained(folder)
    expected = by_diffusers(pipeline)
    state, parts = sd3_to_single(pipeline.transformer.state_dict()), ["transformer"]
    if not alone:
        state = prefixed("model.diffusion_model.", state)
        state |= prefixed("first_stage_model.", vae_to_ldm(pipeline.vae.state_dict()))
        parts += ["vae"]
    path = tmp_path / "sd3_medium.safetensors"
    save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, path)
    # Text encoders are seldom in the file; they come from the base.
    for weights in (one for part in parts for one in (folder / part).glob("*.safetensors")):
        weights.unlink()
    cxrsynth.convert(path, tmp_path / "out", base=folder)
    torch.testing.assert_close(images_of(loaded(tmp_path / "out")), expected, atol=1e-4, rtol=0)


def test_a_file_that_is_marked_as_predicting_v(folders: dict[str, Path], tmp_path: Path) -> None:
    state = ldm_state(folders["sdxl"], text="sdxl")
    for name, marks in {"plain": [], "v": ["v_pred", "ztsnr"]}.items():
        save_file(state | {mark: torch.tensor([]) for mark in marks}, tmp_path / f"{name}.safetensors")
        cxrsynth.convert(tmp_path / f"{name}.safetensors", tmp_path / name, base=folders["sdxl"])
    base, plain, found = (
        json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        for folder in (folders["sdxl"], tmp_path / "plain", tmp_path / "v")
    )
    assert plain == base
    assert base["prediction_type"] != "v_prediction"
    assert found == base | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}


def test_the_base_has_what_the_file_lacks(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["stable_diffusion"]
    state = {name: tensor for name, tensor in ldm_state(folder).items() if not name.startswith("cond_stage_model.")}
    save_file(state, tmp_path / "model.safetensors")
    bare = without_weights(folder, tmp_path / "bare")
    with pytest.raises(
        ModelError, match=r"missing text_encoder, and .*bare has no safetensors of that either\n.*--base"
    ):
        cxrsynth.convert(tmp_path / "model.safetensors", tmp_path / "out", base=bare)
    with pytest.raises(
        ModelError, match=r"holds a U-Net or transformer, an autoencoder; missing: .*tokenizer.*\n.*--base"
    ):
        cxrsynth.convert(tmp_path / "model.safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    cxrsynth.convert(tmp_path / "model.safetensors", tmp_path / "out", base=folder)
    torch.testing.assert_close(images_of(loaded(tmp_path / "out")), of_source(folder), atol=1e-4, rtol=0)


def test_averaged_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["stable_diffusion"]
    state = ldm_state(folder)
    plain = {name: tensor for name, tensor in state.items() if name.startswith("model.diffusion_model.")}
    average = {"model_ema." + "".join(name.split(".")[1:]): tensor for name, tensor in plain.items()}
    # The plain weights are other ones, so that images say which were taken.
    state |= average | {name: torch.zeros_like(tensor) for name, tensor in plain.items()}
    save_file(state, tmp_path / "model.safetensors")
    cxrsynth.convert(tmp_path / "model.safetensors", tmp_path / "out", base=folder, ema=True)
    torch.testing.assert_close(images_of(loaded(tmp_path / "out")), of_source(folder), atol=1e-4, rtol=0)
    cxrsynth.convert(tmp_path / "model.safetensors", tmp_path / "plain", base=folder)
    assert (images_of(loaded(tmp_path / "plain")) - of_source(folder)).abs().max() > 1e-4


@pytest.fixture(scope="module")
def other_sizes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose sizes, heads, schedule and scale are those of `_YAML`, which diffusers has no defaults for."""
    torch.manual_seed(1)
    schedule = {"beta_start": 0.0015, "beta_end": 0.0295, "beta_schedule": "scaled_linear"}
    vae = autoencoder(scaling_factor=0.3)
    given = dict(vae.config) | {"block_out_channels": (32, 32), "norm_num_groups": 32, "mid_block_add_attention": True}
    pipeline = stable_diffusion(
        vae=type(vae).from_config(given),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1, **schedule),
        block_out_channels=(32, 64),
        norm_num_groups=32,
        attention_head_dim=(2, 4),
    )
    for weight in pipeline.unet.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.02)
    folder = tmp_path_factory.mktemp("other") / "sizes"
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def test_sizes_and_schedule_of_the_original_settings(
    other_sizes: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    source = one_file(other_sizes, tmp_path / "model.ckpt")
    settings = tmp_path / "model.yaml"
    settings.write_text(yaml.safe_dump(_YAML))
    with pytest.raises(ModelError, match=r"its unet (does not fit|has .* weights)(.|\n)*--original-config"):
        cxrsynth.convert(source, tmp_path / "out", base=folders["stable_diffusion"])
    cxrsynth.convert(source, tmp_path / "out", base=folders["stable_diffusion"], original_config=settings)
    found = loaded(tmp_path / "out")
    assert found.latent_shape == (4, 8, 8)
    torch.testing.assert_close(images_of(found), of_source(other_sizes), atol=1e-4, rtol=0)


class Runs:
    """Unpickled in full, it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(folders: dict[str, Path], tmp_path: Path) -> None:
    trap, ran = tmp_path / "model.ckpt", tmp_path / "ran"
    content = {"state_dict": {"model.diffusion_model.a": torch.ones(1)}, "callbacks": Runs(ran)}
    torch.save(content, trap)
    with pytest.raises(ModelError, match=r"model\.ckpt: holds more than tensors \(\S+\)(.|\n)*would run code"):
        cxrsynth.convert(trap, tmp_path / "out", base=folders["stable_diffusion"])
    source = tmp_path / "source"
    shutil.copytree(folders["stable_diffusion"], source)
    (source / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(content, source / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ModelError, match=r"diffusion_pytorch_model\.bin: holds more than tensors"):
        cxrsynth.convert(source, tmp_path / "out")
    assert not ran.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"model.ckpt", "source"}
    torch.load(trap, weights_only=False)
    assert ran.exists()  # it would have


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps([1, 2])])
def test_damaged_files_are_refused(content: bytes, folders: dict[str, Path], tmp_path: Path) -> None:
    for name in ("model.ckpt", "model.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelError, match=rf"{name}: (cannot be read|no weights|holds more)"):
            cxrsynth.convert(tmp_path / name, tmp_path / "out", base=folders["stable_diffusion"])


def test_files_of_before_zip_and_tied_weights_are_read(tmp_path: Path) -> None:
    tied = torch.arange(3.0)
    torch.save({"a": tied, "b": tied}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    found = read_weights(tmp_path / "old.bin")
    assert found["a"].equal(tied)
    write_weights(tmp_path / "model.safetensors", found)
    assert load_file(tmp_path / "model.safetensors")["b"].equal(tied)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["cond_stage_model.transformer.attn_layers.layers.0.0.weight", "model.diffusion_model.a"], "Cheff and XReal"),
        (["model.diffusion_model.input_blocks.1.1.qkv.weight"], "a U-Net that takes no text"),
        (["unet.to_q.lora_A.weight"], "generate --lora"),
        (["middle_block.resnet_1.conv1.conv.weight"], "a U-Net of MONAI"),
        (["encoder.blocks.0.conv.weight"], "an autoencoder of MONAI"),
        (["down_blocks.0.resnets.0.conv1.weight"], "one network in diffusers' own names"),
        (["first_stage_model.encoder.conv_in.weight"], "holds an autoencoder, but no U-Net"),
        (
            ["blocks.0.attn.qkv.weight"],
            r"1 tensor, such as blocks\.0\.attn\.qkv\.weight: no model\n.*--embeddings FILE",
        ),
        ([f"blocks.{n}.qkv" for n in range(20)], r"20 tensors in an unknown layout, such as blocks\.0\.qkv"),
    ],
)
def test_other_layouts_are_named(names: list[str], said: str, folders: dict[str, Path], tmp_path: Path) -> None:
    save_file({name: torch.ones(1) for name in names}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=said):
        cxrsynth.convert(tmp_path / "model.safetensors", tmp_path / "out", base=folders["stable_diffusion"])


def test_one_pickled_file_becomes_safetensors(tmp_path: Path) -> None:
    """LoRA weights and learned words, which `generate` takes as safetensors alone."""
    weights = {"<cxr>": torch.arange(6.0).half()}
    (tmp_path / "source").mkdir()
    source = tmp_path / "source" / "learned_embeds.bin"
    torch.save(weights, source)
    done = cxrsynth.convert(source, tmp_path / "new" / "words.safetensors")
    assert (done.model, done.family) == (tmp_path / "new" / "words.safetensors", "")
    found = load_file(done.model)
    assert found.keys() == weights.keys()
    assert found["<cxr>"].equal(weights["<cxr>"])
    assert found["<cxr>"].dtype == torch.float16
    for wrong, name, said in (
        (done.model, None, "expected one pickled file"),
        (source.parent, None, "expected one pickled file"),
        (source, "x", "--name: belongs to a model"),
    ):
        with pytest.raises(ModelError, match=said):
            cxrsynth.convert(wrong, tmp_path / "other.safetensors", name=name)
    assert not (tmp_path / "other.safetensors").exists()


@pytest.mark.parametrize("name", ["", " ", "two\nlines", "n" * 65])
def test_a_name_that_no_manifest_can_hold_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"")
    with pytest.raises(ModelError, match=r"--name .*: expected 1 to 64 printable characters"):
        cxrsynth.convert(tmp_path / "model.ckpt", tmp_path / "out", name=name)


def test_pickled_files_beside_the_parts_are_named(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    shutil.copytree(folders["stable_diffusion"], source)
    pickle_parts(source)
    torch.save({"<cxr>": torch.ones(2)}, source / "learned_embeds.bin")
    cxrsynth.convert(source, tmp_path / "out")
    assert "no part of the model, left out: learned_embeds.bin" in capsys.readouterr().err


def test_a_text_encoder_that_is_not_the_bases_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    source = one_file(folders["stable_diffusion"], tmp_path / "model.safetensors")
    base = build("stable_diffusion with BERT", tmp_path / "base")
    with pytest.raises(ModelError, match=r"its text encoder, cond_stage_model\..*, is none that .* BertModel"):
        cxrsynth.convert(source, tmp_path / "out", base=base)


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "first_stage_model."])
def test_weights_too_few_or_too_many_are_refused(prefix: str, folders: dict[str, Path], tmp_path: Path) -> None:
    state = ldm_state(folders["stable_diffusion"])
    named = sorted(name for name in state if name.startswith(prefix) and name.endswith("bias"))
    for name, changed in (
        ("few", {key: tensor for key, tensor in state.items() if key != named[0]}),
        ("many", state | {f"{prefix}something.else": torch.ones(3)}),
    ):
        save_file(changed, tmp_path / f"{name}.safetensors")
        with pytest.raises(ModelError, match=r"its (unet|vae) (does not fit|has [\d,]+ weights, and its settings ask)"):
            cxrsynth.convert(tmp_path / f"{name}.safetensors", tmp_path / "out", base=folders["stable_diffusion"])


def test_a_text_encoder_with_layers_too_few_or_too_many_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """Diffusers leaves out layers that the settings do not have, and fails on what is missing in saving."""
    state = ldm_state(folders["stable_diffusion"])
    text = {key: tensor for key, tensor in state.items() if key.startswith("cond_stage_model.") and ".layers.1." in key}
    lacking = "cond_stage_model.transformer.text_model.final_layer_norm.bias"
    for name, changed, said in (
        ("more", state | {key.replace(".1.", ".2."): tensor.clone() for key, tensor in text.items()}, "3 layers"),
        ("fewer", {key: tensor for key, tensor in state.items() if key not in text}, "tensors are missing, such as"),
        ("less", {key: tensor for key, tensor in state.items() if key != lacking}, "1 of its tensors are missing"),
    ):
        save_file(changed, tmp_path / f"{name}.safetensors")
        with pytest.raises(ModelError, match=rf"its text_encoder does not fit .*: .*{said}"):
            cxrsynth.convert(tmp_path / f"{name}.safetensors", tmp_path / "out", base=folders["stable_diffusion"])


def test_a_result_that_does_not_load_is_not_kept(folders: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(folders["stable_diffusion"], source)
    pickle_parts(source)
    weights = torch.load(source / "vae" / "diffusion_pytorch_model.bin", weights_only=True)
    weights.pop("decoder.conv_out.bias")
    torch.save(weights, source / "vae" / "diffusion_pytorch_model.bin")
    with pytest.raises(
        ModelError, match=r"cannot be used, so it was not kept\n  vae: .* such as decoder\.conv_out\.bias"
    ):
        cxrsynth.convert(source, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"source"}


def test_the_command(folders: dict[str, Path], tmp_path: Path) -> None:
    source = one_file(folders["stable_diffusion"], tmp_path / "model.ckpt")
    given = ["convert", str(source), str(tmp_path / "out"), "--base", str(folders["stable_diffusion"])]
    done = CliRunner().invoke(app, [*given, "--name", "mine"])
    assert done.exit_code == 0, done.output
    assert "a Stable Diffusion model; use it with cxrsynth generate --model" in " ".join(done.output.split())
    assert loaded(tmp_path / "out").name == "mine"
    again = CliRunner().invoke(app, given)
    assert again.exit_code == 2
    assert "exists" in again.output


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"source": "nowhere"}, "no such file or folder"),
        ({"source": "folder"}, "no model_index.json"),
        ({"source": "safe"}, "nothing to convert"),
        ({"source": "safe", "ema": True}, "--ema: belongs to a single file"),
        ({"source": "text.md"}, "expected a model folder, or a file that ends in .bin"),
    ],
)
def test_what_cannot_be_converted_is_refused(
    given: dict[str, Any], said: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.md").touch()
    shutil.copytree(folders["stable_diffusion"], tmp_path / "safe")
    with pytest.raises(ModelError, match=said):
        cxrsynth.convert(tmp_path / given.pop("source"), tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("base", "config", "said"),
    [
        ("nowhere", None, "--base .*nowhere: no such folder"),
        ("empty", None, "--base .*empty: not a model folder"),
        ("text index", None, r"model_index.json: not the list of a model's parts"),
        ("no class", None, r"--base .*no class: model_index.json gives no class for unet/"),
        ("base", "nowhere.yaml", "--original-config .*nowhere.yaml: cannot be read"),
        ("base", "broken.yaml", "--original-config .*broken.yaml: not the settings of latent diffusion"),
    ],
)
def test_the_base_and_the_settings_are_checked_before_the_checkpoint(
    base: str, config: str | None, said: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("base", "text index", "no class"):
        without_weights(folders["stable_diffusion"], tmp_path / name)
    (tmp_path / "text index" / "model_index.json").write_text("[]")
    (tmp_path / "no class" / "model_index.json").write_text("{}")
    (tmp_path / "broken.yaml").write_text("a: [1")
    torch.save({"state_dict": {"no_such_layout": torch.zeros(2)}}, tmp_path / "model.ckpt")
    given = {} if config is None else {"original_config": tmp_path / config}
    with pytest.raises(ModelError, match=said):
        cxrsynth.convert(tmp_path / "model.ckpt", tmp_path / "out", base=tmp_path / base, **given)
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_into_what_is_read(folders: dict[str, Path], tmp_path: Path) -> None:
    source, base = tmp_path / "source", tmp_path / "base"
    shutil.copytree(folders["stable_diffusion"], source)
    pickle_parts(source)
    without_weights(folders["stable_diffusion"], base)
    file = one_file(folders["stable_diffusion"], tmp_path / "model.ckpt")
    before = hashes(tmp_path)
    with pytest.raises(ShardError, match="sub: lies inside the folder that is converted"):
        cxrsynth.convert(source, source / "sub")
    with pytest.raises(ShardError, match="sub: lies inside --base"):
        cxrsynth.convert(file, base / "sub", base=base)
    assert hashes(tmp_path) == before


def test_a_failure_of_our_own_is_not_blamed_on_the_checkpoint(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise AssertionError("of our own")

    file = one_file(folders["stable_diffusion"], tmp_path / "model.ckpt")
    monkeypatch.setattr("cxrsynth.conversion.single_file._check_complete", fails)
    monkeypatch.setattr("cxrsynth.conversion.single_file._tensors_of", fails)
    with pytest.raises(AssertionError, match="of our own"):
        cxrsynth.convert(file, tmp_path / "out", base=folders["stable_diffusion"])


def test_a_full_disk_leaves_nothing(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    source = one_file(folders["stable_diffusion"], tmp_path / "model.ckpt")
    monkeypatch.setattr(UNet2DConditionModel, "save_pretrained", full)
    with pytest.raises(ShardError, match=r"No space left on device\n  nothing was written"):
        cxrsynth.convert(source, tmp_path / "out", base=folders["stable_diffusion"])
    assert {path.name for path in tmp_path.iterdir()} == {"model.ckpt"}
