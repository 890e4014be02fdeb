"""No thread of a kernel touches what another may be writing, and every barrier is needed for it.

ThreadSanitizer watches the kernels, compiled as C++ with a thread for each of CUDA's (see
`races`). Each barrier that stands in the sources is left out in turn, and that is seen.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import races
from races import ATOMIC, CASES, SHORT, SOURCES, barriers_written


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return races.build(tmp_path_factory.mktemp("races"))


def test_kernels_have_no_races(library: Path) -> None:
    found = races.first_races(library, [([name], 0) for name in CASES])
    assert [what for what in found if what] == []


def test_each_barrier_left_out_is_a_race(library: Path) -> None:
    faults = [("kernels.cu", ATOMIC)]
    for source in SOURCES:  # numbered as they stand in one after the other
        faults += [(source, len(faults) + i) for i in range(barriers_written(source))]
    assert races.barriers_compiled(library) == len(faults) - 1 >= 10
    # The sanitizer remembers the latest accesses alone, and may have forgotten: several tries.
    found = races.first_races(library, [(SHORT[source] * 4, fault) for source, fault in faults])
    for fault, what in zip(faults, found, strict=True):
        assert what.startswith("SUMMARY: ThreadSanitizer: data race "), f"nobody misses {fault}"
