"""What a reference cannot give, said once it is scored: before the images, of which there are more."""

from collections.abc import Iterator

import numpy as np

from cxrsynth import console
from cxrsynth.auditing.scored import Scored
from cxrsynth.auditing.setup import AuditRun
from cxrsynth.errors import ReportsError, ShardError
from cxrsynth.metrics.memorization.search import check_reference, patient_numbers
from cxrsynth.metrics.reidentification.identify import check_patients
from cxrsynth.metrics.utility.measure import check_real


def warn_early(run: AuditRun, reference: Scored) -> None:
    """Warn of every part that this reference is too small for, or lacks the labels for. The audit goes on without it.

    Args:
        run: of the audit.
        reference: all of it, scored.
    """
    for part, why in _not_measurable(run, reference):
        console.warn(f"{part} will not be measured: {why}")


def _not_measurable(run: AuditRun, reference: Scored) -> Iterator[tuple[str, str]]:
    patients = patient_numbers(reference.patients)
    try:
        check_reference(patients)
    except ShardError as error:
        yield "memorization", f"{error}\n  only copies that need no such comparison will be looked for"
    try:
        known = np.array([bool(patient) for patient in reference.patients])
        check_patients(patients[known], unknown=int((~known).sum()))
    except ValueError as error:
        yield "re-identification", str(error)
    if run.settings.utility:
        try:
            check_real(reference.image_table(), seed=run.settings.seed, network=run.utility_model is not None)
        except ReportsError as error:
            yield "utility", str(error)
