"""Ids that were seen: each once, in constant memory, with a message for a full disk."""

import tracemalloc

import pytest

from cxrsynth.errors import ReportsError
from cxrsynth.reports.table.seen import SeenIds


def test_each_id_is_counted() -> None:
    with SeenIds() as seen:
        ids = ("a", "b", "a", "\udcff", "", "b", "\udcff", "", "a", "a")
        assert [seen.add(one) for one in ids] == [0, 0, 1, 0, 0, 1, 1, 1, 2, 3]


def test_a_hundred_thousand_ids_take_no_memory_of_python() -> None:
    tracemalloc.start()
    try:
        with SeenIds() as seen:
            assert not any(seen.add(f"id-{number}") for number in range(100_000))
            assert all(seen.add(f"id-{number}") for number in range(0, 100_000, 1000))
            assert tracemalloc.get_traced_memory()[0] < 100_000
    finally:
        tracemalloc.stop()


def test_a_full_disk_is_named() -> None:
    with SeenIds() as seen:
        seen._database.execute("PRAGMA max_page_count = 1")
        with pytest.raises(ReportsError, match="set TMPDIR to a folder with room"):
            any(seen.add(str(number)) for number in range(10_000))
