"""benchmarks/scale.py and drift.py: what they make of what they measured."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
pytest.importorskip("onnxruntime")
import drift

from padim_edge.images.synthetic import make_dataset


def test_what_starts_once_is_not_counted_with_each_photo() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("ray")
    import scale

    counts = [10, 100, 200]
    rows = [(50.0, 50.0, 50.0), (3.0, 7.0, 2.5), (5.0, 8.0, 3.0)]  # the smallest plays no part
    text = scale.prediction(11.0, counts, rows)
    assert "Plain: 1.0 s and 20.0 ms a photo; --ray, once up: 6.0 s and 10.0 ms" in text
    # 11 + 6 + 1000 * max(.010 / machines, .005)
    assert "| 1000 | 21 | 27 | 22 | 22 | 22 | 22 |" in text


def test_photos_are_counted_from_the_change_on() -> None:
    assert [drift.photos_until(place, "none") for place in (0, 9, 10)] == [1, 10, 11]
    assert [drift.photos_until(place, "blur") for place in (0, 9, 10, 12)] == [None, None, 1, 3]


@pytest.mark.parametrize("options", [("--fit", "4"), ("--fit", "2", "--after", "12")])
def test_draws_of_more_photos_than_there_are_are_refused(
    options: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_dataset(tmp_path, train=11, good=2, per_defect=1, size=64)
    monkeypatch.setattr(sys, "argv", ["drift.py", "embedding.onnx", str(tmp_path), *options])
    with pytest.raises(SystemExit, match=r"of 13 good ones in .*: more than 10"):
        drift.main()
