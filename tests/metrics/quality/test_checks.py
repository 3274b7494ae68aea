"""Quality checks on images drawn by nano and on mean chests, spoilt in known ways."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_file, save_file
from scipy import ndimage
from torch import Tensor

from cxrsynth.diffusion.model import load_model
from cxrsynth.diffusion.noise import seeded_noise
from cxrsynth.diffusion.resolve import resolve_model
from cxrsynth.diffusion.sampler import sample_images
from cxrsynth.errors import ModelError
from cxrsynth.metrics.memorization.registration import load_posture
from cxrsynth.metrics.quality.burned_in import longest_row
from cxrsynth.metrics.quality.checks import CHECKS, FRAMING_CHECKS, LIKENESS_CHECKS, QualityChecks
from cxrsynth.metrics.quality.framing import FRAMING_FAULTS, load_framing
from cxrsynth.metrics.quality.gray_levels import effective_levels, end_share, structure
from cxrsynth.metrics.quality.likeness import Likeness, to_canonical
from cxrsynth.metrics.quality.texture import block_edges, fineness, noise_level
from cxrsynth.rewards.backends import family_folder
from cxrsynth.rewards.networks import PostureRegressor
from cxrsynth.runtime.warps import warp, warp_matrices
from cxrsynth.settings import Precision, Sampler

CPU = torch.device("cpu")
PROMPTS = ["PA view. Adult woman. Normal chest.", "AP view. Child. Pneumonia.", "AP view. Adult man. Pleural effusion."]


@pytest.fixture(scope="module")
def family() -> Path:
    folder = family_folder("nano-judge")
    assert folder is not None
    return folder


@pytest.fixture(scope="module")
def checks(family: Path) -> QualityChecks:
    return QualityChecks(Likeness.load(family, load_posture(family, CPU)), load_framing(CPU))


@pytest.fixture(scope="module")
def radiographs() -> Tensor:
    """Drawn by nano: an adult PA, a child AP, an adult AP; [3, 1, 256, 256]."""
    model = load_model(resolve_model("nano"), device=CPU, precision=Precision.FP32)
    noise = torch.stack([seeded_noise(model.latent_shape, 0, f"quality-{i}") for i in range(len(PROMPTS))])
    return sample_images(model, PROMPTS, noise, sampler=Sampler.DDIM, steps=10, guidance=2.0).float().clamp(0, 1)


def failed(checks: QualityChecks, images: Tensor) -> list[set[str]]:
    table = checks(images)
    return [{name for name, wrong in zip(table.names, row, strict=True) if wrong} for row in table.failed.tolist()]


def written(radiographs: Tensor, text: str, size: int, *, at: tuple[int, int]) -> Tensor:
    """Images with white letters at a place, in a font of `size` pixels."""
    drawn = []
    for radiograph in radiographs:
        image = Image.fromarray((radiograph[0].numpy() * 255).round().astype(np.uint8))
        ImageDraw.Draw(image).text(at, text, 255, ImageFont.load_default(size), stroke_width=1, stroke_fill=0)
        drawn.append(torch.from_numpy(np.array(image, dtype=np.float32) / 255))
    return torch.stack(drawn)[:, None]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_good_images_fail_nothing(checks: QualityChecks, radiographs: Tensor) -> None:
    assert failed(checks, radiographs) == [set()] * 3
    assert failed(checks, F.avg_pool2d(radiographs, 2)) == [set()] * 3
    table = checks(radiographs)
    assert table.names == tuple(CHECKS)
    assert table.values.shape == table.failed.shape == (3, len(CHECKS))
    assert table.values.dtype == torch.float32
    assert table.values.isfinite().all()


@pytest.mark.parametrize(
    ("radiograph", "names"),
    [
        (torch.zeros(1, 1, 256, 256), {"blank", "clipped", "not_a_chest"}),
        (torch.full((1, 1, 256, 256), 0.3), {"blank", "clipped", "not_a_chest"}),
        (torch.ones(1, 1, 256, 256), {"blank", "clipped", "not_a_chest", "saturated"}),
        ((0.5 + 0.1 * noise(1, 1, 256, 256)).clamp(0, 1), {"blank", "not_a_chest"}),
        (torch.linspace(0.1, 0.9, 256).expand(1, 1, 256, 256).contiguous(), {"blank", "not_a_chest"}),
    ],
    ids=["black", "grey", "white", "noise", "shade"],
)
def test_pictures_of_nothing_are_blank(checks: QualityChecks, radiograph: Tensor, names: set[str]) -> None:
    assert failed(checks, radiograph)[0] >= names


def test_a_faint_chest_is_blank_and_darker_ones_are_not(radiographs: Tensor) -> None:
    contrast = structure(radiographs)
    assert torch.allclose(structure(radiographs * 0.5 + 0.2), contrast * 0.5, atol=1e-6)
    assert (structure(radiographs * 0.05 + 0.4) < CHECKS["blank"].threshold).all()
    y, x = torch.meshgrid(torch.linspace(-1, 1, 256), torch.linspace(-1, 1, 256), indexing="ij")
    assert torch.allclose(structure(radiographs * 0.5 + 0.2 + 0.05 * x * y - 0.04 * x), contrast * 0.5, atol=0.02)


def test_too_light_and_too_dark_are_reported(checks: QualityChecks, radiographs: Tensor) -> None:
    for spoilt in (radiographs * 2.5, radiographs + 0.5, radiographs * 6 - 2.5):
        assert all("saturated" in names for names in failed(checks, spoilt.clamp(0, 1)))
    for spoilt in (radiographs * 0.12, radiographs * 0.1 + 0.9):
        assert all("clipped" in names for names in failed(checks, spoilt.clamp(0, 1)))


def test_black_counts_only_where_it_reaches_no_edge() -> None:
    radiographs = 0.3 + 0.4 * torch.rand(3, 1, 200, 200, generator=torch.Generator().manual_seed(0))
    radiographs[0, :, 80:120, 80:120] = 0.0  # enclosed: 1600 of the middle's 124 x 124 pixels
    radiographs[1, :, :120, 80:120] = 0.0  # the same black, out to the edge
    radiographs[2, :, 80:120, 80:120] = 1.0
    share = 1600 / 124**2
    assert end_share(radiographs).tolist() == pytest.approx([share, 0.0, share], rel=0.05)
    assert end_share(radiographs[:1]).tolist() == end_share(radiographs)[:1].tolist()


def test_levels_in_use_are_counted() -> None:
    ramp = torch.arange(256).float().repeat(1, 1, 256, 1).mT / 255  # every row one level
    middle = 256 - 2 * 48
    assert effective_levels(ramp).item() == pytest.approx(middle)
    for count in (4, 8, 16):
        rounded = (ramp * (count - 1)).round() / (count - 1)
        assert effective_levels(rounded).item() <= count + 1e-3


def test_posterised_images_are_clipped(checks: QualityChecks, radiographs: Tensor) -> None:
    for count in (4, 8, 16):
        spoilt = (radiographs * (count - 1)).round() / (count - 1)
        assert all("clipped" in names for names in failed(checks, spoilt))


def test_the_negative_is_called_inverted_and_a_chest(checks: QualityChecks, radiographs: Tensor) -> None:
    plain, negative = checks(radiographs), checks(1 - radiographs)
    assert all(names == {"inverted"} for names in failed(checks, 1 - radiographs))
    column = plain.names.index("inverted")
    assert torch.allclose(plain.values[:, column], -negative.values[:, column], atol=1e-4)
    for gamma in (0.5, 2.0):  # not by brightness
        assert failed(checks, radiographs**gamma) == [set()] * 3
        assert all("inverted" in names for names in failed(checks, 1 - radiographs**gamma))


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_turned_images_are_reported(checks: QualityChecks, radiographs: Tensor, turns: int) -> None:
    assert all("turned" in names for names in failed(checks, radiographs.rot90(turns, (2, 3)).contiguous()))


def test_each_turn_is_seen_as_the_upright_is(radiographs: Tensor, family: Path) -> None:
    searching = Likeness(Likeness.load(family, load_posture(family, CPU)).templates)
    plain = searching(radiographs)
    assert (plain.upright > plain.turned).all()
    for turns in (1, 2, 3):
        assert (searching(radiographs.rot90(turns, (2, 3))).turned >= plain.upright - 1e-4).all()
    assert torch.allclose(searching(1 - radiographs).inverted, plain.upright, atol=1e-4)


def test_other_pictures_are_no_chest(checks: QualityChecks) -> None:
    y, x = torch.meshgrid(torch.linspace(-1, 1, 256), torch.linspace(-1, 1, 256), indexing="ij")
    rings = 0.5 + 0.4 * torch.cos(25 * (x.square() + y.square()).sqrt())
    board = ((x * 4).floor() + (y * 4).floor()).remainder(2) * 0.8 + 0.1
    disc = (x.square() + y.square() < 0.5).float() * 0.6 + 0.1
    texture = 0.5 + 0.15 * F.interpolate(noise(1, 1, 40, 40), (256, 256), mode="bicubic")[0, 0]
    others = torch.stack([rings, board, disc, texture]).clamp(0, 1)[:, None]
    for names in failed(checks, others):
        assert names & {"not_a_chest", "turned", "inverted"}


def test_a_badly_placed_chest_is_still_a_chest(checks: QualityChecks, radiographs: Tensor, family: Path) -> None:
    moves = torch.tensor([[0.2, -0.1, 0.1, 0.2, 0.1], [-0.2, 0.15, -0.1, -0.1, -0.15], [0.0, 0.2, 0.25, 0.25, 0.0]])
    for move in moves:
        moved = warp(radiographs, warp_matrices(move[None]).expand(3, -1, -1))
        assert not {"not_a_chest", "turned", "inverted"} & set().union(*failed(checks, moved))
    searching = Likeness(Likeness.load(family, load_posture(family, CPU)).templates)
    assert (searching(radiographs).upright > 0.5).all()
    assert (searching(radiographs).upright > searching(radiographs).inverted).all()


def test_registration_undoes_a_known_warp(family: Path) -> None:
    """On a mean chest, which is canonical: the way back, not the way there again."""
    network = PostureRegressor.from_pretrained(family / "posture").eval()
    means = load_file(family / "canonical.safetensors")
    chests = torch.stack([means["mean_adult"], means["mean_child"]])[:, None]
    move = torch.tensor([[0.15, -0.1, 0.15, 0.1, 0.12]]).expand(2, -1)
    moved = warp(chests, warp_matrices(move), outside="border")
    with torch.inference_mode():
        canonical, away, back = (network(images) for images in (chests, moved, to_canonical(moved, network)))
    assert ((back - canonical).norm(dim=1) < 0.5 * (away - canonical).norm(dim=1)).all()


def test_only_what_may_be_the_best_is_registered(radiographs: Tensor, family: Path) -> None:
    """Good images as they are, their negatives as negatives."""
    network = PostureRegressor.from_pretrained(family / "posture").eval()
    seen: list[Tensor] = []

    def register(images: Tensor) -> Tensor:
        seen.append(images)
        return to_canonical(images, network)

    like = Likeness(Likeness.load(family, load_posture(family, CPU)).templates, register)
    plain = like(radiographs)
    assert 3 <= len(seen[0]) <= 4  # of nine views
    negative = like(1 - radiographs)
    assert 3 <= len(seen[1]) <= 4
    assert torch.allclose(negative.inverted, plain.upright, atol=1e-4)
    seen.clear()
    # Of no polarity in particular: all three views are in doubt.
    like(torch.full_like(radiographs[:1], 0.5))
    assert [len(images) for images in seen] == [3]


@pytest.mark.parametrize("size", [12, 16, 24])
@pytest.mark.parametrize("at", [(6, 6), (40, 120), (20, 222)])
def test_text_is_found(radiographs: Tensor, size: int, at: tuple[int, int]) -> None:
    assert (longest_row(written(radiographs, "PATIENT 4821", size, at=at)) > CHECKS["text"].threshold).all()


def test_side_markers_wires_and_plates_are_no_text(checks: QualityChecks, radiographs: Tensor) -> None:
    for marker in ("L", "R", "L\nAP"):
        assert (longest_row(written(radiographs, marker, 20, at=(12, 12))) <= CHECKS["text"].threshold).all()
    wires = radiographs.clone()
    wires[..., 60:63, 20:230] = wires[..., 20:230, 90:92] = 1.0
    for left in range(20, 90, 11):  # a row of small full squares
        wires[..., 10:17, left : left + 7] = 1.0
    assert (longest_row(wires) <= CHECKS["text"].threshold).all()


def test_letters_that_stand_apart_are_no_row(radiographs: Tensor) -> None:
    row = written(radiographs, "ABCDEF", 16, at=(10, 10))
    stack = written(radiographs, "\n".join("ABCDEF"), 16, at=(10, 10))
    # Bright edges of the image in line with the letters may count as one more.
    assert (longest_row(row) >= 6).all()
    assert (longest_row(stack) <= 3).all()


def test_large_images_are_read_too(radiographs: Tensor) -> None:
    large = F.interpolate(written(radiographs, "PATIENT 4821", 28, at=(10, 10)), (1024, 1024), mode="bilinear")
    assert (longest_row(large) > CHECKS["text"].threshold).all()


@pytest.mark.parametrize(
    ("faults", "move"),
    [
        ({"rotated"}, [0.0, 0.0, 0.0, 0.0, math.radians(12)]),
        ({"rotated"}, [0.0, 0.0, 0.0, 0.0, math.radians(-25)]),
        ({"cropped"}, [0.0, 0.0, -0.6, -0.6, 0.0]),
        ({"cropped", "inverted"}, [0.3, -0.3, -0.6, -0.6, 0.0]),
        ({"not_frontal"}, [0.0, 0.0, 0.5, 0.0, 0.0]),
        ({"not_frontal", "not_a_chest", "inverted"}, [0.45, 0.0, -0.65, 0.0, 0.0]),
    ],
    ids=["to one side", "to the other", "middle", "corner", "squeezed", "one lung"],
)
def test_faults_of_framing_are_reported(
    checks: QualityChecks, radiographs: Tensor, faults: set[str], move: list[float]
) -> None:
    moved = warp(radiographs, warp_matrices(torch.tensor([move])).expand(3, -1, -1))
    assert all(names & faults for names in failed(checks, moved))


def test_a_mirror_image_is_reported_as_nothing_else(checks: QualityChecks, radiographs: Tensor) -> None:
    assert failed(checks, radiographs.flip(-1)) == [{"mirrored"}] * 3


def test_mirroring_turns_one_sign_and_changes_nothing_else(radiographs: Tensor) -> None:
    network = load_framing(CPU)
    with torch.inference_mode():
        there, mirrored = network(radiographs), network(radiographs.flip(-1))
    assert FRAMING_FAULTS[0] == "mirrored"
    assert torch.allclose(there[:, 0], -mirrored[:, 0], atol=1e-4)
    assert torch.allclose(there[:, 1:], mirrored[:, 1:], atol=1e-4)


def smaller(radiographs: Tensor, side: int) -> Tensor:
    return F.interpolate(radiographs, (side, side), mode="bilinear", antialias=True)


def enlarged(radiographs: Tensor, mode: str) -> Tensor:
    levels = F.interpolate(radiographs, (256, 256), mode=mode).clamp(0, 1) * 255
    return levels.round() / 255


def test_soft_images_are_blurred_and_small_ones_are_not(checks: QualityChecks, radiographs: Tensor) -> None:
    for mode in ("bilinear", "bicubic"):
        assert all("blurred" in names for names in failed(checks, enlarged(smaller(radiographs, 64), mode)))
    soft = torch.from_numpy(ndimage.gaussian_filter(radiographs.numpy(), sigma=(0, 0, 1.5, 1.5)))
    assert all("blurred" in names for names in failed(checks, soft))
    small = smaller(radiographs, 160)
    stored = list(small[:, 0].numpy())
    table = checks(enlarged(small, "bilinear"), stored)
    assert not table.failed[:, table.names.index("blurred")].any()
    with pytest.raises(ValueError, match="2 stored images for 3"):
        checks(radiographs, stored[:2])


def test_contrast_does_not_change_how_fine_an_image_is(radiographs: Tensor) -> None:
    full, low = ((one * 255).round() / 255 for one in (radiographs, radiographs * 0.4 + 0.3))
    assert torch.allclose(fineness(full), fineness(low), atol=0.05)
    assert fineness(torch.full((1, 1, 128, 128), 0.5)).item() == 0


def test_noise_is_reported_in_gray_levels_and_detail_is_not(checks: QualityChecks, radiographs: Tensor) -> None:
    plain = torch.full((4, 1, 256, 256), 0.5)
    for levels in (2, 5, 20):
        drawn = plain + levels / 255 * noise(4, 1, 256, 256)
        assert noise_level(drawn).numpy() == pytest.approx(levels, rel=0.03)
    y, x = torch.meshgrid(torch.linspace(0, 1, 256), torch.linspace(0, 1, 256), indexing="ij")
    for picture in ((x + y) / 2, (x > 0.5).float(), (torch.hypot(x - 0.5, y - 0.5) < 0.3).float()):
        assert noise_level(picture[None, None]).item() < 0.01
    for levels, found in ((0, False), (5, True), (12, True)):
        drawn = (radiographs + levels / 255 * noise(*radiographs.shape)).clamp(0, 1)
        assert ["noisy" in names for names in failed(checks, (drawn * 255).round() / 255)] == [found] * 3


def through_jpeg(radiograph: Tensor, quality: int) -> Tensor:
    buffer = io.BytesIO()
    Image.fromarray((radiograph[0].numpy() * 255).round().astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as image:
        return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255)[None]


def test_blocks_are_reported_at_whatever_place_and_size(checks: QualityChecks, radiographs: Tensor) -> None:
    coarse = torch.stack([through_jpeg(one, 5) for one in radiographs])
    assert all("blocks" in names for names in failed(checks, coarse))
    fine = torch.stack([through_jpeg(one, 90) for one in radiographs])
    assert all("blocks" not in names for names in failed(checks, fine))
    assert all(block_edges(one[0, 3:, 5:].numpy()) > CHECKS["blocks"].threshold for one in coarse)
    large = F.interpolate(radiographs, (512, 512), mode="bicubic").clamp(0, 1)
    large = torch.stack([through_jpeg(one, 5) for one in large])
    assert all("blocks" in names for names in failed(checks, F.avg_pool2d(large, 2)))
    assert all("blocks" in names for names in failed(checks, enlarged(smaller(radiographs, 64), "nearest")))
    # What resizing hides is seen in the stored image.
    table = checks(smaller(large, 200), list(large[:, 0].numpy()))
    assert table.failed[:, table.names.index("blocks")].all()


def test_batches_do_not_matter(checks: QualityChecks, radiographs: Tensor) -> None:
    mixed = torch.cat(
        [radiographs, 1 - radiographs, radiographs.rot90(2, (2, 3)), written(radiographs, "ROOM 1204", 14, at=(9, 9))]
    )
    whole = checks(mixed)
    apart = [checks(one[None]) for one in mixed]
    assert torch.allclose(whole.values, torch.cat([one.values for one in apart]), atol=1e-4)
    assert torch.equal(whole.failed, torch.cat([one.failed for one in apart]))
    assert torch.equal(whole.values, checks(mixed).values)


def test_without_likeness_or_framing_their_checks_are_left_out(radiographs: Tensor) -> None:
    table = QualityChecks(framing=load_framing(CPU))(radiographs)
    assert set(table.names) == set(CHECKS) - set(LIKENESS_CHECKS)
    table = QualityChecks()(radiographs)
    assert set(table.names) == set(CHECKS) - set(LIKENESS_CHECKS) - set(FRAMING_CHECKS)
    assert not table.failed.any()


def test_thresholds_are_the_callers(radiographs: Tensor) -> None:
    strict = QualityChecks(thresholds={"blank": 0.99, "text": -1.0})(radiographs)
    for name in strict.names:
        assert strict.failed[:, strict.names.index(name)].all() == (name in ("blank", "text"))
    with pytest.raises(
        ValueError, match=r"inverted.*checks made: blank, saturated, clipped, blurred, noisy, blocks, text"
    ):
        QualityChecks(thresholds={"inverted": 0.1})


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 3, 64, 64),
        torch.zeros(2, 1, 64, 32),
        torch.zeros(0, 1, 64, 64),
        torch.zeros(2, 1, 64, 64, dtype=torch.float64),
        torch.full((1, 1, 64, 64), 1.5),
        torch.full((1, 1, 64, 64), float("nan")),
    ],
    ids=["colour", "oblong", "none", "float64", "range", "nan"],
)
def test_other_images_are_refused(images: Tensor) -> None:
    with pytest.raises(ValueError, match="images"):
        QualityChecks()(images)


def test_templates_must_be_grey_pictures() -> None:
    with pytest.raises(ValueError, match=r"\(64, 64\), expected \[T, 64, 64\]"):
        Likeness(torch.zeros(64, 64))
    with pytest.raises(ValueError, match=r"outside \[0, 1\]"):
        Likeness(torch.full((1, 64, 64), 1.2))


def test_a_folder_that_is_no_family_is_refused(tmp_path: Path, family: Path) -> None:
    posture = load_posture(family, CPU)
    with pytest.raises(ModelError, match=r"canonical\.safetensors with mean_adult and mean_child"):
        Likeness.load(tmp_path, posture)
    save_file({"mean_adult": torch.zeros(64, 64)}, tmp_path / "canonical.safetensors")
    with pytest.raises(ModelError, match="mean_child"):
        Likeness.load(tmp_path, posture)
    (tmp_path / "canonical.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match="expected"):
        Likeness.load(tmp_path, posture)
    (tmp_path / "canonical.safetensors").write_bytes((family / "canonical.safetensors").read_bytes())
    Likeness.load(tmp_path, posture)
    with pytest.raises(ModelError, match="posture/"):
        load_posture(tmp_path, CPU)
