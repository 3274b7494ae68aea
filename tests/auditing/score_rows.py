"""Images as they come scored, for tests of what is made of scores."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

CHECKS = ("blank", "inverted", "text")


def part(radiographs: Sequence[Mapping[str, Any]], *, rewards: Sequence[str], checks: Sequence[str] = CHECKS) -> Any:
    """A scored unit: what an image does not say is that of one without fault, its rewards null."""

    def column(name: str, default: Any, kind: Any) -> Any:
        return pa.array([radiograph.get(name, default) for radiograph in radiographs], kind)

    texts = {name: column(name, None, pa.string()) for name in ("key", "view", "sex", "age_group")}
    lists = {name: column(name, [], pa.list_(pa.string())) for name in ("present", "absent", "checks_failed")}
    numbers = {f"reward_{name}": column(name, None, pa.float32()) for name in rewards}
    numbers |= {f"check_{name}": column(f"check_{name}", 0.0, pa.float32()) for name in checks}
    return pa.table(
        {
            **texts,
            "source": column("source", "cxr-000000.tar", pa.string()),
            "place": pa.array(range(len(radiographs)), pa.int32()),
            "sha256": column("sha256", "0" * 64, pa.string()),
            "patient": column("patient", "Somebody", pa.string()),
            **lists,
            **numbers,
            "features": pa.array([[0.0, 1.0]] * len(radiographs), pa.list_(pa.float32(), 2)),
            "preview": pa.array([b"\xff"] * len(radiographs), pa.binary()),
        }
    )
