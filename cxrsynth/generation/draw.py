"""The images of a batch: sampled, and, where images are judged, drawn again until they are accepted."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cxrsynth.diffusion.model import DiffusionModel
from cxrsynth.diffusion.noise import seeded_noise
from cxrsynth.diffusion.sampler import start_images
from cxrsynth.errors import ModelError
from cxrsynth.generation.accept import Acceptor, Outcome
from cxrsynth.generation.batches import Batch, prompt_key
from cxrsynth.generation.plan import GenerateRun
from cxrsynth.reports.request import BuiltPrompt
from cxrsynth.reports.table.rows import Report
from cxrsynth.shards.encode import Encoder
from cxrsynth.shards.sample import Sample, sample_key, subject_key


@dataclass(frozen=True)
class Drawn:
    """One image with its prompt, and what was decided on it; None where images are not judged."""

    sample: Sample
    prompt: BuiltPrompt
    outcome: Outcome | None = None


@dataclass(frozen=True)
class Drawer:
    """What draws images: the model, and what judges them, if anything does. The encoder says what will be stored."""

    run: GenerateRun
    model: DiffusionModel
    acceptor: Acceptor | None
    encoder: Encoder

    def draw(self, batch: Batch, stopped: threading.Event) -> Callable[[], list[Drawn]]:
        """Draw the images of a batch. Which are drawn again, with which others, depends on nothing but the batch.

        Returns:
            What gives the images. It waits for those that are not judged, so that the thread that draws does not: a
            CUDA device may still be at work on them. It raises ModelError if their pixels are not finite.

        Raises:
            ModelError: if the model produces pixels that are not finite, where images are judged.
            SamplingStopped: once `stopped` is set.
        """
        prompts = [batch.shard.prompts[prompt_key(report)] for report, _ in batch.members]
        subjects = [subject_key(self.run.id_key, report.report_id) for report, _ in batch.members]
        keys = [sample_key(subject, index) for subject, (_, index) in zip(subjects, batch.members, strict=True)]

        def start(places: Sequence[int], attempt: int) -> Callable[[], Tensor]:
            again = f"/attempt-{attempt}" if attempt else ""
            return self._start(
                [batch.members[place][0] for place in places],
                [prompts[place] for place in places],
                [keys[place] + again for place in places],
                stopped,
            )

        def drawn(images: Tensor, outcomes: Sequence[Outcome | None]) -> list[Drawn]:
            return [
                Drawn(self._as_sample(image, prompt, key, subject, index, outcome), prompt, outcome)
                for image, prompt, key, subject, (_, index), outcome in zip(
                    images, prompts, keys, subjects, batch.members, outcomes, strict=True
                )
            ]

        if self.acceptor is None:
            images = start(range(len(keys)), 0)
            return lambda: drawn(images(), [None] * len(keys))
        reports = [_as_published(report, prompt) for (report, _), prompt in zip(batch.members, prompts, strict=True)]
        judged, outcomes = self.acceptor.draw(
            lambda places, attempt: start(places, attempt)(),
            reports,
            stored=self.encoder.as_read_back,
            laterals={place for place, prompt in enumerate(prompts) if prompt.subject.view == "LATERAL"},
        )
        return lambda: drawn(judged, outcomes)

    def _start(
        self, reports: Sequence[Report], prompts: Sequence[BuiltPrompt], keys: Sequence[str], stopped: threading.Event
    ) -> Callable[[], Tensor]:
        """What waits for the images [B, 1, H, W] of prompts, from the noise of `keys`."""
        run = self.run
        noise = [seeded_noise(self.model.latent_shape, run.settings.seed, key) for key in keys]
        # What is compiled is compiled for one size of batch: smaller ones are filled up with their last image.
        filled = run.batch_size - len(prompts) if run.settings.sampling.compiled else 0
        shown = [*prompts, *[prompts[-1]] * filled]
        copy = start_images(
            self.model,
            [prompt.prompt for prompt in shown],
            torch.stack([*noise, *[noise[-1]] * filled]),  # [B, C, h, w]
            sampler=run.sampler,
            steps=run.steps,
            guidance=run.guidance,
            conditions=[prompt.conditions for prompt in shown],
            stopped=stopped,
        )
        return lambda: self._finite(copy.wait()[: len(prompts)], reports)

    def _finite(self, images: Tensor, reports: Sequence[Report]) -> Tensor:
        """The images. Raises ModelError if pixels are not finite."""
        for report, image in zip(reports, images, strict=True):
            if not image.isfinite().all():
                raise ModelError(
                    f"{self.run.settings.reports}: line {report.line}: the model produced pixels that are not finite"
                    f" ({self.model.precision.value} on {self.model.device.type})\n"
                    "  try --precision fp32, or another --guidance"
                )
        return images

    def _view_by_ace(self, prompt: BuiltPrompt) -> str | None:
        """The view that ACE asks the model for, whatever the prompt says."""
        view, ace = prompt.subject.view, self.model.ace
        return view if ace is not None and f"view {view}" in ace.conditions else None

    def _as_sample(
        self, image: Tensor, prompt: BuiltPrompt, key: str, subject: str, index: int, outcome: Outcome | None
    ) -> Sample:
        judged = {} if outcome is None else outcome.metadata
        return Sample(
            key=key,
            subject_key=subject,
            image_index=index,
            image=image[0].numpy(),
            metadata=self.run.common_metadata | prompt.metadata | {"image_index": index} | judged,
            # Archives sort by these: a view or sex that the model cannot show, or was not asked for, is not stated.
            view=prompt.stated.view or self._view_by_ace(prompt),
            sex=prompt.stated.sex,
            text=prompt.text,
            comment="" if outcome is None else outcome.comment,
        )


def _as_published(report: Report, prompt: BuiltPrompt) -> Report:
    """A report as the shard will hold it: sanitized text, and labels from columns and text alike."""
    return replace(report, text=prompt.text, findings="", impression="", labels=prompt.labels)
