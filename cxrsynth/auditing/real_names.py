"""Names of real images, kept out of what an audit hands on: a file's name is often a patient's number."""

import csv
import hashlib
import hmac
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

from cxrsynth.auditing.comparison import Comparison
from cxrsynth.runtime.cells import as_text_cell
from cxrsynth.runtime.files import write_atomically

_LETTERS = 12


class RealNames:
    """Keyed names of reference images, the same for the same id key; and the way back, for the folder's owner.

    Args:
        id_key: of this user.
    """

    def __init__(self, id_key: bytes) -> None:
        self._key = id_key
        self._names: dict[str, str] = {}

    def hide(self, name: str) -> str:
        """The keyed name of an image: `real-` and the start of an HMAC-SHA256."""
        message = f"real image {name}".encode("utf-8", "surrogateescape")
        hidden = f"real-{hmac.new(self._key, message, hashlib.sha256).hexdigest()[:_LETTERS]}"
        self._names[hidden] = name
        return hidden

    def name(self, hidden: str) -> str:
        """The image's own name."""
        return self._names[hidden]

    def hide_in(self, comparison: Comparison) -> Comparison:
        """The same comparison with keyed names of the nearest real images."""

        def hidden(name: str | None) -> str | None:
            return self.hide(name) if name else name

        columns = dict(comparison.columns)
        if "nearest_real" in columns:
            columns["nearest_real"] = [hidden(name) for name in columns["nearest_real"]]
        memorization: dict[str, Any] | None = comparison.memorization
        if memorization is not None:
            nearest = [pair | {"real": hidden(pair["real"])} for pair in memorization["nearest"]]
            memorization = memorization | {"nearest": nearest}
        return replace(comparison, columns=columns, memorization=memorization)

    def write(self, path: Path) -> None:
        """Write keyed and own names side by side, as CSV; a name that looks like a formula behind an apostrophe."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("keyed_name", "name"))
        writer.writerows((hidden, as_text_cell(name)) for hidden, name in sorted(self._names.items()))
        write_atomically(path, text.getvalue().encode("utf-8", "surrogateescape"))
