"""A sample as the members of a shard, and back."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from cxrsynth.runtime.files import stable_json
from cxrsynth.settings import ImageFormat, IncludeText, ShardFormat, ShardSettings
from cxrsynth.shards.sample import Sample
from cxrsynth.shards.tar import encode_image


@dataclass(frozen=True)
class DatasetIdentity:
    """The origin recorded in every DICOM object. `seed` is the root of all UIDs of the data set."""

    seed: str
    model_name: str
    model_digest: str
    software_version: str


class Encoder:
    """Encodes samples in one format."""

    def __init__(self, settings: ShardSettings, identity: DatasetIdentity) -> None:
        self._settings = settings
        self._identity = identity

    def members(self, sample: Sample) -> dict[str, bytes]:
        """The members of one sample, extension -> content."""
        if self._settings.format is ShardFormat.DICOM:
            extension, content = "dcm", self._dicom(sample)
        else:
            extension, content = encode_image(sample.image, self._settings.image_format)
        members = {extension: content, "json": stable_json(sample.metadata)}
        if self._settings.include_text is IncludeText.SANITIZED and sample.text is not None:
            members["txt"] = sample.text.encode()
        return members

    def encode(self, samples: Sequence[Sample]) -> list[dict[str, bytes]]:
        """The members of each sample, in their order."""
        return [self.members(sample) for sample in samples]

    def _dicom(self, sample: Sample) -> bytes:
        from cxrsynth.shards.dicom import DicomSettings, to_dataset
        from cxrsynth.shards.dicom_file import to_bytes

        dataset = to_dataset(
            sample.image,
            DicomSettings(
                dataset_uid_seed=self._identity.seed,
                model_name=self._identity.model_name,
                model_digest=self._identity.model_digest,
                software_version=self._identity.software_version,
                sop_class=self._settings.sop_class,
                study_date=self._settings.study_date or "",
            ),
            key=sample.key,
            subject_key=sample.subject_key,
            image_index=sample.image_index,
            view=sample.view,
            sex=sample.sex,
            comment=sample.comment,
        )
        return to_bytes(dataset)

    def as_read_back(self, image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """An image [H, W] in [0, 1] as a reader of the shard sees it: quantized, or compressed."""
        if self._settings.format is ShardFormat.DICOM:
            from cxrsynth.shards.dicom import as_stored

            return as_stored(image)
        extension, content = encode_image(image, self._settings.image_format)
        read = decode_member(f"image.{extension}", content)
        if read is None:
            raise ValueError(f"{extension}: no format of images")
        return read


def decode_member(name: str, content: bytes) -> npt.NDArray[np.float32] | None:
    """The image in a shard member, [H, W] float32 in [0, 1]; None if the member is not an image."""
    extension = name.rpartition(".")[2]
    if extension == "dcm":
        from pydicom import dcmread

        from cxrsynth.shards.dicom import from_dataset

        return from_dataset(dcmread(io.BytesIO(content)))
    if extension in (ImageFormat.PNG.value, ImageFormat.JPG.value):
        levels = np.asarray(Image.open(io.BytesIO(content)))
        return (levels / np.float32(np.iinfo(levels.dtype).max)).astype(np.float32)
    return None
