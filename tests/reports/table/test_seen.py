"""Ids that were seen: each once, in constant memory, with a message for a full disk."""

import tracemalloc

import pytest

from cxrsynth.errors import ReportsError
from cxrsynth.reports.table.seen import SeenIds


def test_each_id_is_new_once() -> None:
    with SeenIds() as seen:
        assert [seen.add(one) for one in ("a", "b", "a", "\udcff", "", "b", "\udcff", "")] == [
            *(True, True, False, True, True),
            *(False, False, False),
        ]


def test_a_hundred_thousand_ids_take_no_memory_of_python() -> None:
    tracemalloc.start()
    try:
        with SeenIds() as seen:
            assert all(seen.add(f"id-{number}") for number in range(100_000))
            assert not any(seen.add(f"id-{number}") for number in range(0, 100_000, 1000))
            assert tracemalloc.get_traced_memory()[0] < 100_000
    finally:
        tracemalloc.stop()


def test_a_full_disk_is_named() -> None:
    with SeenIds() as seen:
        seen._database.execute("PRAGMA max_page_count = 1")
        with pytest.raises(ReportsError, match="set TMPDIR to a folder with room"):
            all(seen.add(str(number)) for number in range(10_000))
