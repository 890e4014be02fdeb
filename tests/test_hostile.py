"""A short campaign of `make fuzz`, and that it would notice."""

from __future__ import annotations

import hostile


def test_a_short_campaign(tmp_path):
    assert hostile.campaign(120, 1, tmp_path / "kept") == []


def test_the_campaign_notices(tmp_path, monkeypatch):
    def careless(path):
        raise KeyError(path.name)

    monkeypatch.setattr(hostile, "images", lambda: iter([(b"P6", ".ppm", (careless,))]))
    monkeypatch.setattr(hostile, "models", lambda: iter(()))
    monkeypatch.setattr(hostile, "others", lambda: iter(()))
    (wrong,) = hostile.campaign(1, 0, tmp_path / "kept")
    assert "KeyError" in wrong
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["0.ppm"]
