"""Consistency: how similar are image and report in a space learned from pairs of both?"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cxrsynth.reports.deid.sanitize import sanitize, sanitize_part
from cxrsynth.reports.prompt import cut_at_sentence
from cxrsynth.reports.sections import Kind
from cxrsynth.reports.table.rows import Report
from cxrsynth.reports.values import section_of


class ConsistencyReward:
    """Cosine similarity of image and text in an image-text dual encoder, -1 to 1, without a temperature.

    A report without text gives nan.

    Args:
        encode_images: [B, 1, H, W] in [0, 1] -> unit vectors [B, D].
        encode_texts: B texts -> unit vectors [B, D].
        text_of: report -> the text to encode, in the wording the encoder was trained on.
    """

    unit = "cosine"
    low, high = -1.0, 1.0
    needs_report = True

    def __init__(
        self,
        encode_images: Callable[[Tensor], Tensor],
        encode_texts: Callable[[list[str]], Tensor],
        *,
        text_of: Callable[[Report], str],
    ) -> None:
        self._encode_images = encode_images
        self._encode_texts = encode_texts
        self._text_of = text_of

    @torch.inference_mode()
    def __call__(self, images: Tensor, reports: Sequence[Report]) -> Tensor:
        """[B, 1, H, W] in [0, 1] and B reports -> [B]."""
        texts = [self._text_of(report) for report in reports]
        known = [place for place, text in enumerate(texts) if text.strip()]
        scores = torch.full((len(texts),), torch.nan)
        if known:
            # A reference may have few texts or none, and the encoder of images may be large. Where all have one, the
            # tensor itself is passed on: networks that see the same one share what they make of it.
            seen = images if len(known) == len(texts) else images[known]
            encoded = self._encode_images(seen).float() * self._encode_texts([texts[place] for place in known]).float()
            scores[known] = encoded.sum(1).cpu()
        return scores


def text_of(fits: Callable[[str], bool]) -> Callable[[Report], str]:
    """Report -> its impression, or all of it where it has none: de-identified, and cut at a sentence so that it fits.

    Args:
        fits: whether a text is short enough for the encoder.
    """

    def found(report: Report) -> str:
        whole = sanitize(report.full_text)
        impression = sanitize_part(section_of(report, Kind.IMPRESSION), introduced=whole.introduced)
        return cut_at_sentence(impression.text or whole.text, fits)[0]

    return found
