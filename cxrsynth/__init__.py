"""Synthetic chest X-rays you can share.

The commands as functions, and the data sets they make, ready for training:

- `generate`, `tune`, `audit`, `convert`: what the commands of the same names do.
- `open_dataset`: images, labels and metadata of a data set, ready for a PyTorch `DataLoader`.
- `example_reports`: path of the example table of reports.
- `sanitize`: a report without what identifies people, places and times.
- `read_findings`: the CheXpert observations that the text of a report states, each with status and side.

Importing the package is fast: torch is imported by the first call.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.3.0.dev0"

if TYPE_CHECKING:
    from cxrsynth.api import audit as audit
    from cxrsynth.api import convert as convert
    from cxrsynth.api import example_reports as example_reports
    from cxrsynth.api import generate as generate
    from cxrsynth.api import tune as tune
    from cxrsynth.auditing.audit import AuditReport as AuditReport
    from cxrsynth.conversion.convert import Converted as Converted
    from cxrsynth.dataset import OBSERVATIONS as OBSERVATIONS
    from cxrsynth.dataset import open_dataset as open_dataset
    from cxrsynth.errors import CxrsynthError as CxrsynthError
    from cxrsynth.errors import ModelError as ModelError
    from cxrsynth.errors import RecipeError as RecipeError
    from cxrsynth.errors import ReportsError as ReportsError
    from cxrsynth.errors import ShardError as ShardError
    from cxrsynth.generation.generate import Generated as Generated
    from cxrsynth.reports.deid.sanitize import Sanitized as Sanitized
    from cxrsynth.reports.deid.sanitize import sanitize as sanitize
    from cxrsynth.reports.findings.reader import read_findings as read_findings
    from cxrsynth.reports.labels import FindingLabel as FindingLabel
    from cxrsynth.reports.labels import Side as Side
    from cxrsynth.reports.labels import Status as Status
    from cxrsynth.tuning.tune import Tuned as Tuned

# Public name -> the module that defines it, imported when the name is first used (PEP 562).
_PUBLIC = {
    "AuditReport": "auditing.audit",
    "Converted": "conversion.convert",
    "CxrsynthError": "errors",
    "FindingLabel": "reports.labels",
    "Generated": "generation.generate",
    "ModelError": "errors",
    "OBSERVATIONS": "dataset",
    "RecipeError": "errors",
    "ReportsError": "errors",
    "Sanitized": "reports.deid.sanitize",
    "ShardError": "errors",
    "Side": "reports.labels",
    "Status": "reports.labels",
    "Tuned": "tuning.tune",
    "audit": "api",
    "convert": "api",
    "example_reports": "api",
    "generate": "api",
    "open_dataset": "dataset",
    "sanitize": "reports.deid.sanitize",
    "read_findings": "reports.findings.reader",
    "tune": "api",
}
__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
