"""Fit: from embedding.onnx and good images to padim.onnx, in bounded memory and without torch.

1. `features.extract`             images through the backbone; selected maps go to a store
                                  (whitened presets: pooled ones, then projected by `basis`)
2. `statistics.estimate`          a run of cells at a time: moments of the images
3. `whitening`, `held_out`        what each run's moments become: constants, leave-one-out distances
                                  (2 and 3 otherwise: `ledoit_wolf`)
                                  (again without `outliers`, if they are to be rejected)
4. `calibrate.calibrate`          leave-one-out scores give the threshold
5. `assemble.assemble`            the graph, with everything as constants; then it is written

Selected maps are small (0.34 MB an image for ResNet-18, 1.8 MB for WideResNet-50-2) because
nothing is repeated to the finest resolution; past `features.STORE_IN_MEMORY` bytes they go to a
temporary file. Everything after that needs only a few cells at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from padim_edge.errors import PadimEdgeError, UsageError
from padim_edge.files import atomic_write, check_distinct
from padim_edge.fit.assemble import assemble
from padim_edge.fit.basis import Basis, described, find_basis, images_for
from padim_edge.fit.calibrate import calibrate
from padim_edge.fit.chosen import check_whole, with_chosen
from padim_edge.fit.features import Extract, Features, extract
from padim_edge.fit.held_out import ScoreMaps
from padim_edge.fit.ledoit_wolf import estimator, ledoit_wolf_statistics
from padim_edge.fit.moments import Array
from padim_edge.fit.outliers import ROUNDS, Outlier, find_outliers
from padim_edge.fit.saved import SavedMoments
from padim_edge.fit.settings import Settings
from padim_edge.fit.statistics import Statistics, sample_statistics
from padim_edge.images.appearance import Appearance
from padim_edge.images.batches import OnError, refuse
from padim_edge.model.file import Model, read, write
from padim_edge.model.pooling import check_head, with_pooled, with_projection
from padim_edge.model.smoothing import Smoothing
from padim_edge.model.threshold import threshold_for
from padim_edge.progress import Progress, silent


@dataclass(frozen=True)
class Fitted:
    """What a fit made.

    Attributes:
        model: as it was written.
        size: of the file in bytes.
        new_images: images that were used.
        paths: their files, [new_images].
        scores: of each, as if it had been left out of the fit, [new_images].
        maps: that the scores are of.
        equal: (image, the one that it equals pixel by pixel; None if an earlier fit had that),
            which were not used.
        near: groups of nearly equal images, which count as one each in the threshold.
        outliers: images of the fit that are very unlike the others (`outliers`), the worst first.
        rejected: outliers that were left out, round by round, the worst of each first.
        engine: what ran the backbone, in words.
        skipped: with engine "auto", why those before it were not taken, a line each.
        brightest: value in the prepared images, 0 to 255.
        wanted: images that a whitened preset's threshold needs to be trusted; 0 for others, and
            with ``update``, whose basis is made already: the file's ``calibration`` says of how
            many images, if they are too few.
        seconds_features: of images through the backbone.
        seconds_statistics: of all that came after.
    """

    model: Model
    size: int
    new_images: int
    paths: tuple[Path, ...]
    scores: Array
    maps: ScoreMaps
    equal: tuple[tuple[Path, Path | None], ...]
    near: list[list[Path]]
    outliers: tuple[Outlier, ...]
    rejected: tuple[Outlier, ...]
    engine: str
    skipped: tuple[str, ...]
    brightest: int
    wanted: int
    seconds_features: float
    seconds_statistics: float


def fit_detector(
    embedding: str | Path | Model,
    images: Sequence[Path],
    output: str | Path,
    settings: Settings,
    *,
    update: Path | None = None,
    save_moments: Path | None = None,
    reject_outliers: bool = False,
    engine: str = "auto",
    threads: int = 0,
    on_error: OnError = refuse,
    progress: Progress = silent,
    extract: Extract = extract,
) -> Fitted:
    """Fit a detector on good images and write it.

    Args:
        embedding: a file made by export, or what was read from it.
        images: good images.
        output: the file to write.
        settings: how to fit.
        update: saved moments of earlier images to go on from.
        save_moments: where to save the moments of all images, for a later ``update``.
        reject_outliers: whether to leave out images that are very unlike the others, and fit on
            the rest as if they had never been given; again until none is, `outliers.ROUNDS` times
            at most. Those of an earlier fit stay.
        engine: what runs the backbone: a name of `padim_edge.runtime.graphs.GRAPHS`, or "auto".
        threads: of the engine on a CPU, and of the statistics; 0 for all cores.
        on_error: called for each image that cannot be read, which is then left out; it may
            raise, and does unless told otherwise.
        progress: called as work goes on.
        extract: what runs images through the backbone; others do it on other machines
            (`padim_edge.scale`).

    Raises:
        PadimEdgeError: too few images, unreadable files, features that are not finite, ...;
            nothing is written then.
    """
    if not isinstance(embedding, Model):
        embedding = read(embedding, "embedding")
    check_settings(embedding, settings, moments=bool(update or save_moments))
    if settings.preset == "reference" and settings.dims is not None:
        # Moments say what was drawn, so the settings stay.
        embedding = with_chosen(embedding, settings.dims)
    earlier = SavedMoments.load(update, embedding, settings) if update else None
    _check_count(len(images), earlier, settings)
    check_distinct(embedding=embedding.path, output=Path(output), moments=save_moments)
    check_distinct(update=update, output=Path(output))
    with contextlib.ExitStack() as files:
        # Closed, and so renamed, in reverse: the moments only once the model is in its place.
        # Otherwise an update that failed between the two would count its images twice when
        # repeated.
        state_stream = files.enter_context(atomic_write(save_moments)) if save_moments else None
        stream = files.enter_context(atomic_write(output))
        start = time.perf_counter()
        head = settings.head()
        features = extract(
            with_pooled(embedding, head) if head else embedding,
            images,
            settings.preprocess,
            engine,
            threads,
            on_error,
            progress,
            earlier.digests if earlier else (),
        )
        extracted = time.perf_counter()
        made = fit_features(
            embedding, features, settings, earlier, bool(save_moments), reject_outliers, threads,
            progress,
        )  # fmt: skip
        size = write(stream, made.model)
        finished = time.perf_counter()
        if state_stream and made.saved:
            made.saved.save(state_stream)
    used = made.features
    return Fitted(
        model=made.model,
        size=size,
        new_images=used.count,
        paths=used.paths,
        scores=made.statistics.scores,
        maps=made.statistics.maps,
        equal=used.equal,
        near=used.near(),
        outliers=made.outliers,
        rejected=made.rejected,
        engine=used.engine,
        skipped=used.skipped,
        brightest=used.brightest,
        wanted=made.wanted,
        seconds_features=extracted - start,
        seconds_statistics=finished - extracted,
    )


@dataclass(frozen=True)
class Made:
    """What became of features, in memory.

    Attributes:
        model: the detector.
        saved: the moments of all images, if they were to be kept.
        features: of the images that were used.
        statistics: what is known of these, without the Gaussians, which are in the model.
        outliers: see `Fitted`.
        rejected: the same.
        wanted: the same.
    """

    model: Model
    saved: SavedMoments | None
    features: Features
    statistics: Statistics
    outliers: tuple[Outlier, ...]
    rejected: tuple[Outlier, ...]
    wanted: int


def fit_features(
    embedding: Model,
    features: Features,
    settings: Settings,
    earlier: SavedMoments | None = None,
    keep: bool = False,
    reject_outliers: bool = False,
    threads: int = 0,
    progress: Progress = silent,
) -> Made:
    """Fit a detector on features of good images, in memory.

    Args:
        embedding: the backbone.
        features: by `extract`, of a whitened preset those of `with_pooled`. With
            ``reject_outliers`` they are of no use afterwards.
        settings: how to fit.
        earlier: moments of other images to go on from.
        keep: whether the moments of all are wanted.
        reject_outliers: see `fit_detector`.
        threads: of the statistics; 0 for all cores.
        progress: called as work goes on.

    Raises:
        PadimEdgeError: too few images, or they do not differ.
    """
    _check_count(len(features.firsts()), earlier, settings, features)
    wanted = images_for(features.pyramid.levels[0].layers[0]) if settings.head() else 0
    rejected: tuple[Outlier, ...] = ()
    for rounds_left in reversed(range(ROUNDS + 1)):
        own, backbone, used, basis = _with_basis(
            embedding, features, settings, earlier, threads, progress
        )
        smoothing = Smoothing.of(
            own.pyramid,
            settings.preprocess.size,
            settings.sigma,
            settings.roi.mask if settings.roi else None,
        )
        statistics = _statistics(own, used, smoothing, earlier, keep, threads, progress)
        scores, pixel_scores, how = _all_scores(statistics, own, earlier)
        outliers = find_outliers(own.paths, statistics.scores, scores)
        if not (reject_outliers and outliers and rounds_left):
            break
        rejected += outliers
        features = features.without({one.path for one in outliers})
        _check_count(len(features.firsts()), earlier, settings, features)
    total = features.count + (earlier.moments.count if earlier else 0)
    if basis:
        known = earlier.moments.count if earlier else features.count
        how = f"{how}, {described(basis, wanted, known)}"
    if rejected:
        how = f"{how}; {len(rejected)} outliers were left out"
    calibration = calibrate(scores, pixel_scores, settings.false_alarm_rate, how)
    ratios = _aspect_ratios(features, earlier)
    digests = (earlier.digests if earlier else ()) + features.digests
    looks = _looks(features, earlier)
    model = assemble(
        backbone, statistics.gaussians, calibration, smoothing, used, total, ratios, digests,
        None if looks is None else Appearance.of(looks),
    )  # fmt: skip
    saved = None
    if statistics.moments:
        saved = SavedMoments(
            embedding.sha256,
            settings,
            statistics.moments,
            scores,
            pixel_scores,
            digests,
            ratios,
            basis,
            looks,
        )
    own_basis = not (earlier and earlier.basis)
    return Made(model, saved, features, statistics, outliers, rejected, wanted if own_basis else 0)


def _with_basis(
    embedding: Model,
    features: Features,
    settings: Settings,
    earlier: SavedMoments | None,
    threads: int,
    progress: Progress,
) -> tuple[Features, Model, Settings, Basis | None]:
    """Features, backbone and settings as a whitened preset has them, and its basis; or as given."""
    head = settings.head()
    if not head:
        return features, embedding, settings, None
    basis = earlier.basis if earlier else None
    basis = basis or find_basis(features, head, settings.shrinkage, threads, progress)
    backbone = with_projection(embedding, head, basis.directions, basis.offset)
    used = dataclasses.replace(settings, eps=basis.eps, shrinkage=basis.shrinkage)
    return basis(features, head), backbone, used, basis


def _statistics(
    features: Features,
    settings: Settings,
    smoothing: Smoothing,
    earlier: SavedMoments | None,
    keep: bool,
    threads: int,
    progress: Progress,
) -> Statistics:
    """By the estimator of the settings."""
    if settings.covariance == "ledoit-wolf":
        return ledoit_wolf_statistics(features, settings, smoothing, threads, progress)
    return sample_statistics(features, settings, smoothing, earlier, keep, threads, progress)


def _all_scores(
    statistics: Statistics, features: Features, earlier: SavedMoments | None
) -> tuple[Array, Array, str]:
    """Image and pixel scores of earlier images, as their own fit gave them, and of the new ones.

    And how they were made, in words.

    Of nearly equal images the first alone: a new part is as likely to exceed the scores of all
    others as one *part* is, however often it was photographed.
    """
    firsts = features.firsts()
    own, own_pixels = statistics.scores[firsts], statistics.pixel_scores[firsts]
    if not earlier:
        return own, own_pixels, statistics.how
    scores = np.concatenate([earlier.scores, own])
    pixel_scores = np.concatenate([earlier.pixel_scores, own_pixels])
    if not len(earlier.pixel_scores):
        pixel_scores = earlier.pixel_scores
    count = len(earlier.scores)
    how = f"{statistics.how}, and {count} earlier ones as scored in their own fit"
    return scores, pixel_scores, how


def _aspect_ratios(features: Features, earlier: SavedMoments | None) -> tuple[float, ...]:
    """Of all images; none if those of earlier ones are unknown."""
    if earlier and not earlier.aspect_ratios:
        return ()
    return features.aspect_ratios(earlier.aspect_ratios if earlier else ())


def _looks(features: Features, earlier: SavedMoments | None) -> Array | None:
    """Of one of each group of nearly equal images; None if those of earlier ones are unknown."""
    own = features.looks[features.firsts()]
    if not earlier:
        return own
    return None if earlier.looks is None else np.concatenate([earlier.looks, own])


def check_settings(embedding: Model, settings: Settings, moments: bool) -> None:
    """Refuse what does not go together.

    Raises:
        UsageError: the settings do not fit the embedding, or with ``moments`` saved or updated.
    """
    if settings.preprocess.size != embedding.backbone_info.image_size:
        raise UsageError(
            f"the preprocessing gives {settings.preprocess.size}, the graph takes "
            f"{embedding.backbone_info.image_size}"
        )
    head = settings.head()
    if head:
        check_head(embedding.backbone_info, head)
    else:
        check_whole(embedding, settings.dims)
    if settings.covariance == "ledoit-wolf":
        if moments:
            raise UsageError(
                "--covariance ledoit-wolf has no moments to save or update: fit all images together"
            )
        estimator()  # now, not after the last image


def _check_count(
    count: int,
    earlier: SavedMoments | None,
    settings: Settings,
    features: Features | None = None,
) -> None:
    """Refuse a number of images that cannot give a covariance or the threshold asked for."""
    scores = count + (len(earlier.scores) if earlier else 0)
    if count < 1 or scores < 3:
        equal = len(features.equal) if features else 0
        near = features.count - count if features else 0
        beside = f", {equal} equal to others" * (equal > 0) + f", {near} nearly so" * (near > 0)
        raise PadimEdgeError(
            f"{count} usable image{'s' * (count != 1)} given{beside}: a fit needs at least 3 good "
            "images, of different parts, and 30 or more to be worth something"
        )
    rate = settings.false_alarm_rate
    if rate is not None:
        threshold_for(np.zeros(scores), rate)  # says how many are needed
