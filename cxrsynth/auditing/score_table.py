"""The table of scores, one row per image: its columns, its file, and what summary.json takes from it."""

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from cxrsynth.errors import ModelError, ShardError
from cxrsynth.runtime.cells import FORMULA_STARTS
from cxrsynth.runtime.files import open_atomically

# Images without a finding stated as present. "No Finding" is a finding: the report says that the chest is normal.
NONE_STATED = "no finding stated"

_FORMULA = f"^([{re.escape(FORMULA_STARTS)}])"  # as `as_text_cell` does it, for a whole column
_REWARD, _CHECK = "reward_", "check_"
_IMAGE = {
    "key": pa.string(),
    "source": pa.string(),
    "place": pa.int32(),
    "view": pa.string(),
    "sex": pa.string(),
    "age_group": pa.string(),
    "present": pa.list_(pa.string()),
    "absent": pa.list_(pa.string()),
}
_FOUND = {
    "checks_failed": pa.list_(pa.string()),
    "duplicate_of": pa.string(),
    "duplicate_similarity": pa.float32(),
    "nearest_real": pa.string(),
    "nearest_real_similarity": pa.float32(),
    "memorized": pa.bool_(),
    "nearest_patient": pa.string(),
    "nearest_patient_score": pa.float32(),
    "source_score": pa.float32(),
}
_DECIDED = {"kept": pa.bool_(), "reasons": pa.list_(pa.string())}
_NEVER_NULL = ("key", "source", "place", "present", "absent", "checks_failed", "kept", "reasons")
_WRITTEN_AT_ONCE = 1 << 16  # rows: a million stay in memory as Arrow columns, and are never copied whole
_QUANTILES = {"p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}


def scores_schema(rewards: Iterable[str], checks: Iterable[str], *, decided: bool = True) -> Any:
    """Arrow schema of the table; rewards and checks in the order given, `kept` and `reasons` last if `decided`.

    Raises:
        ValueError: for a reward whose name summary.json needs for something else, or a name given twice.
    """
    columns = dict(_IMAGE)
    for prefix, names in ((_REWARD, list(rewards)), (_CHECK, list(checks))):
        if len(set(names)) < len(names) or {"images", "kept"} & set(names):
            raise ValueError(f"{prefix}: {names}, expected each name once, and none of images, kept")
        columns |= {f"{prefix}{name}": pa.float32() for name in names}
    columns |= _FOUND | (_DECIDED if decided else {})
    return pa.schema([pa.field(name, kind, nullable=name not in _NEVER_NULL) for name, kind in columns.items()])


def scores_table(parts: Iterable[Any], found: Mapping[str, Any] | None = None) -> Any:
    """Undecided table of a set.

    Args:
        parts: tables of scored images, in the collection's order. Columns that scores.parquet does not have (features,
            hashes, patients) are left out; rewards are nan or null where undefined.
        found: column -> one value per image, of searches over the whole set (duplicates, near-duplicates of real
            images); null where missing.

    Raises:
        ModelError: for a reward that is infinite.
        ValueError: for a name in `found` that is not such a column, or has another length.
    """
    table = pa.concat_tables(parts)
    schema = scores_schema(reward_names(table), check_names(table), decided=False)
    found = found or {}
    if set(found) - set(_FOUND) or any(len(column) != table.num_rows for column in found.values()):
        raise ValueError(
            f"columns {sorted(found)}, expected some of {sorted(_FOUND)} with {table.num_rows} values each"
        )
    for name in reward_names(table):
        _refuse_infinite(table, name)
    columns = []
    for wanted in schema:
        if wanted.name in found:
            column = pa.array(found[wanted.name], wanted.type)
        elif wanted.name in table.column_names or not wanted.nullable:
            column = table[wanted.name].cast(wanted.type)
        else:
            column = pa.nulls(table.num_rows, wanted.type)
        columns.append(_nan_to_null(column) if pa.types.is_floating(wanted.type) else column)
    return pa.table(columns, schema=schema)


def _nan_to_null(column: Any) -> Any:
    return pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)


def _refuse_infinite(table: Any, reward: str) -> None:
    strange = np.flatnonzero(np.isinf(reward_values(table, reward)))
    if len(strange):
        key = table["key"][int(strange[0])].as_py()
        raise ModelError(f"reward {reward}: infinite for image {key}\n  expected a finite number, or nan")


def write_scores(path: Path, scores: Any) -> None:
    """Write scores.parquet, whole or not at all; equal tables give equal bytes whatever their chunks."""
    schema = scores_schema(reward_names(scores), check_names(scores), decided="kept" in scores.column_names)
    with (
        open_atomically(path) as file,
        pq.ParquetWriter(file, schema, version="2.6", compression="zstd", compression_level=3) as writer,
    ):
        for piece in _pieces(scores.select(schema.names)):
            writer.write_table(piece.cast(schema).combine_chunks(), row_group_size=_WRITTEN_AT_ONCE)


def _pieces(table: Any) -> Iterator[Any]:
    """The table in pieces of some rows; an empty one in none."""
    return (table.slice(first, _WRITTEN_AT_ONCE) for first in range(0, table.num_rows, _WRITTEN_AT_ONCE))


def read_scores(path: Path) -> Any:
    """The table of scores.parquet. Raises ShardError unless `write_scores` wrote the file."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        table = pq.read_table(pa.BufferReader(content))
        schema = scores_schema(reward_names(table), check_names(table), decided="kept" in table.column_names)
        return table.select(schema.names).cast(schema)
    except (pa.ArrowException, OSError, KeyError, ValueError):
        raise ShardError(
            f"{path}: not scores that an audit wrote\n  remove the file, then run the same command again"
        ) from None


def reward_names(scores: Any) -> list[str]:
    """Rewards that have a column, in the table's order."""
    return [name.removeprefix(_REWARD) for name in scores.column_names if name.startswith(_REWARD)]


def check_names(scores: Any) -> list[str]:
    """Quality checks that have a column, in the table's order."""
    # `checks_failed` does not start with the prefix: there is an s before its underscore.
    return [name.removeprefix(_CHECK) for name in scores.column_names if name.startswith(_CHECK)]


def reward_values(scores: Any, reward: str) -> npt.NDArray[np.float32]:
    """One reward of all images, [N] float32, nan where undefined."""
    known = pc.fill_null(scores[f"{_REWARD}{reward}"].cast(pa.float32()), np.float32(np.nan))
    return np.asarray(known.to_numpy(), dtype=np.float32)


def rows_by_value(lists: Any) -> dict[str, npt.NDArray[np.int64]]:
    """Rows in whose list each value stands, ascending and once each, sorted by value.

    Args:
        lists: pyarrow ChunkedArray of lists of strings; a null is an empty list.
    """
    whole = lists.combine_chunks()
    parents = np.asarray(pc.list_parent_indices(whole), dtype=np.int64)
    encoded = pc.dictionary_encode(pc.cast(pc.list_flatten(whole), pa.string()))
    codes = np.asarray(encoded.indices.to_numpy(zero_copy_only=False))
    order = np.argsort(codes, kind="stable")
    names = encoded.dictionary.to_pylist()
    ends = np.searchsorted(codes[order], np.arange(len(names) + 1))
    found = {
        name: np.unique(parents[order[start:end]]) for name, start, end in zip(names, ends, ends[1:], strict=False)
    }
    return dict(sorted(found.items()))


def rows_without_value(lists: Any) -> npt.NDArray[np.int64]:
    """Rows whose list is empty or null, ascending."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0)
    return np.flatnonzero(np.asarray(lengths) == 0).astype(np.int64)


def finding_groups(scores: Any) -> dict[str, npt.NDArray[np.int64]]:
    """Rows of each finding stated as present, sorted by name; an image with several findings is in several groups."""
    groups = rows_by_value(scores["present"])
    without = rows_without_value(scores["present"])
    if len(without):
        groups[NONE_STATED] = np.union1d(groups.get(NONE_STATED, without[:0]), without)
    return dict(sorted(groups.items()))


def summaries(scores: Any) -> dict[str, Any]:
    """The parts of summary.json that follow from a decided table: kept, rejected, reasons, rewards, findings.

    An image counts under each of its reasons and findings. Undefined rewards are left out of means and quantiles, which
    are null where no reward is defined. `rewards_kept` are those of the kept images: rules on rewards raise them by
    choice, so they say nothing of the model.
    """
    kept = np.asarray(scores["kept"].to_numpy(), dtype=bool)
    values = {name: reward_values(scores, name) for name in reward_names(scores)}
    reasons = {reason: len(rows) for reason, rows in rows_by_value(scores["reasons"]).items()}
    findings = {
        finding: {"images": len(rows), "kept": int(kept[rows].sum())}
        | {name: _mean(column[rows]) for name, column in values.items()}
        for finding, rows in finding_groups(scores).items()
    }
    return {
        "kept": int(kept.sum()),
        "rejected": int((~kept).sum()),
        "reasons": reasons,
        "rewards": {name: _distribution(column) for name, column in values.items()},
        "rewards_kept": {name: _distribution(column[kept]) for name, column in values.items()},
        "findings": findings,
    }


def _distribution(values: npt.NDArray[np.float32]) -> dict[str, float | int | None]:
    """Mean, standard deviation (of these images, not an estimate for others) and quantiles of the defined rewards."""
    defined = values[~np.isnan(values)].astype(np.float64)
    if not len(defined):
        return {"mean": None, "std": None, **dict.fromkeys(_QUANTILES), "unscored": len(values)}
    quantiles = {name: float(np.quantile(defined, share)) for name, share in _QUANTILES.items()}
    return {
        "mean": float(defined.mean()),
        "std": float(defined.std()),
        **quantiles,
        "unscored": len(values) - len(defined),
    }


def _mean(values: npt.NDArray[np.float32]) -> float | None:
    defined = values[~np.isnan(values)].astype(np.float64)
    return float(defined.mean()) if len(defined) else None


def write_keep_list(path: Path, scores: Any) -> None:
    """Write keep.csv, whole or not at all: key, source, kept (true or false), reasons joined by "; "."""
    with open_atomically(path) as file:
        _write_decisions(file, scores, ("key", "source", "kept", "reasons"))


def decisions_csv(decided: Any, columns: Sequence[str]) -> bytes:
    """Some columns of a decided table as CSV, reasons joined by "; "."""
    sink = io.BytesIO()
    _write_decisions(sink, decided, columns)
    return sink.getvalue()


def _write_decisions(sink: IO[bytes], decided: Any, columns: Sequence[str]) -> None:
    # One piece at least, for the header of a table without rows.
    pieces = [decided, *_pieces(decided)][bool(decided.num_rows) :]
    for place, piece in enumerate(pieces):
        chosen = piece.select(list(columns))
        joined = pc.binary_join(chosen["reasons"].cast(pa.list_(pa.string())), "; ")
        named = chosen.set_column(chosen.column_names.index("reasons"), "reasons", joined)
        write_csv(sink, named, header=place == 0)


def write_csv(sink: IO[bytes], table: Any, *, header: bool = True) -> None:
    """A table as CSV. A text that a spreadsheet would take for a formula begins with an apostrophe."""
    for place, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            plain = pc.replace_substring_regex(table[field.name], _FORMULA, r"'\1")
            table = table.set_column(place, field.name, plain)
    pyarrow.csv.write_csv(table, sink, pyarrow.csv.WriteOptions(include_header=header))
