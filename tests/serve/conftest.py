"""A service over real HTTP, with real detectors."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")

from padim_edge.fit.fit import fit_detector
from padim_edge.fit.settings import Settings as FitSettings
from padim_edge.images.dataset import train_images
from padim_edge.images.preprocess import Preprocess
from padim_edge.serve.service import Service
from padim_edge.serve.settings import Settings

Serve = Callable[..., Service]


@pytest.fixture(scope="module")
def model(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector that is called bottle. Read only."""
    return Path(shutil.copy(model_file, tmp_path_factory.mktemp("served") / "bottle.onnx"))


@pytest.fixture(scope="session")
def other_model(once: Callable[..., Path], embedding_file: Path, photos: Path) -> Path:
    """Another detector: of half the photos, so its scores differ. Read only."""
    settings = FitSettings(Preprocess.whole((64, 64)), constants="float32")
    good = train_images(photos)[:6]
    return (
        once("other", lambda at: fit_detector(embedding_file, good, at / "other.onnx", settings))
        / "other.onnx"
    )


@pytest.fixture(scope="module")
def service(model: Path) -> Iterator[Service]:
    """One image a run, so that scores are those of a detector that is called with one, exactly."""
    with Service([model], Settings(engine="ort", max_batch=1)) as running:
        yield running


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts services, and ends them."""
    running: list[Service] = []

    def start(
        *paths: Path, token: str | None = None, samples: Path | None = None, **settings: object
    ) -> Service:
        limits = Settings(engine="ort", **settings)  # type: ignore[arg-type]
        service = Service(list(paths), limits, token=token, samples=samples)
        running.append(service)
        service.start()
        return service

    yield start
    for one in running:
        one.stop()
