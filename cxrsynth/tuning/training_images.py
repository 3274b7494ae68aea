"""The images that a stage trains on: those of held-out and test reports left out, the others encoded once."""

from pathlib import Path

from cxrsynth import console
from cxrsynth.diffusion.model import DiffusionModel
from cxrsynth.runtime.pool import OrderedPool
from cxrsynth.tuning.latent_cache import ExcludedReports, ImageEncoder, TrainingImages
from cxrsynth.tuning.run import TuneRun


class ImagesSummary:
    """How many images a stage uses and why it leaves others out; kept in checkpoints, for the model card."""

    def __init__(self) -> None:
        self.text = ""

    def state(self) -> str:
        """For a checkpoint."""
        return self.text

    def load(self, state: str) -> None:
        """From a checkpoint."""
        self.text = str(state)


def read_images(
    run: TuneRun,
    index: int,
    model: DiffusionModel,
    summary: ImagesSummary,
    *,
    folder: Path,
    limit_gib: float,
    batch_size: int,
    pool: OrderedPool,
) -> TrainingImages:
    """Encode the images of a stage that are not encoded yet, each process its share, and say how many there are.

    Args:
        run: whose processes share the work.
        index: of the stage.
        model: whose autoencoder encodes them.
        summary: gets what the model card says.
        folder: of what is encoded.
        limit_gib: the most disk space it may take.
        batch_size: images per forward pass.
        pool: where forward passes run.

    Raises:
        ReportsError, RecipeError, ModelError, OSError: as `ImageEncoder` does.
    """
    collection = run.loaded.images[index]
    excluded = ExcludedReports.of([*run.held_out, *run.test])
    if excluded.unknown and run.is_main:
        console.warn(
            f"{excluded.unknown} held-out or test reports have neither id, patient nor text: their images cannot be"
            " excluded from training"
        )
    encoder = ImageEncoder(
        collection,
        model,
        run.prompt_builder(model.fits),
        excluded=excluded,
        folder=folder,
        limit_bytes=limit_gib * 2**30,
        batch_size=batch_size,
        pool=pool,
    )
    with console.image_progress(None, quiet=not run.is_main, what="images encoded") as advance:
        encoder.encode(run.group.share(collection.units), advance=advance)
    run.wait()
    images = encoder.images()
    summary.text = images.summary(first_damage=False)
    if run.is_main:
        console.say(f"{collection.path}: {images.summary()}")
    return images
