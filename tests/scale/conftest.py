"""A Ray of the tests' own, one for each file: it takes seconds to start."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from padim_edge.scale.cluster import Cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two workers on this machine; skips where Ray is absent."""
    pytest.importorskip("ray", reason="needs Ray: pip install 'padim-edge[ray]'")
    from padim_edge.scale.cluster import connected

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("padim_edge.scale.cluster.available_cores", lambda: 2)
        with connected("local") as cluster:
            yield cluster
