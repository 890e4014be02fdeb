"""Report pages in a real browser: what they show, how they obey, and what they must not do."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Page, chromium
from helpers import in_process
from numpy.typing import NDArray
from PIL import Image

pytestmark = pytest.mark.slow

SCRIPT = "<script>alert(1)<script>.png"
KIND = "stain 'deep' \"<b>&amp;"
PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as one:
        yield one


@pytest.fixture
def opened(browser) -> Iterator[Any]:
    """Opens a file; at the end nothing may have gone wrong or been asked for."""
    with contextlib.ExitStack() as stack:

        def opened(file: Path, **options: Any) -> Page:
            page = Page(browser, file, **options)
            stack.callback(page.context.close)
            stack.callback(check, page, file)
            return page

        yield opened


def check(page: Page, file: Path) -> None:
    """No complaint on the console, nothing asked for but the file."""
    assert page.troubles == []
    assert page.asked == [file.resolve().as_uri()]


class Evaluated:
    """What `eval --report` made, and the same known otherwise.

    Attributes:
        file: the page.
        metrics: of --json.
        names: of the images, [N].
        kinds: of the images, [N].
        scores: float64 [N].
        threshold: the file's.
    """

    def __init__(self, file: Path, metrics: dict[str, Any], lines: list[dict[str, Any]]) -> None:
        self.file = file
        self.metrics = metrics
        paths = [Path(line["path"]) for line in lines]
        self.names = [f"{path.parent.name}/{path.name}" for path in paths]
        self.kinds = np.array([path.parent.name for path in paths])
        self.scores: NDArray[np.float64] = np.array([line["score"] for line in lines])
        self.threshold = lines[0]["threshold"]

    @property
    def labels(self) -> NDArray[np.bool_]:
        return self.kinds != "good"

    def counts(self, threshold: float) -> dict[str, int]:
        """The confusion counts, by NumPy."""
        alarms = self.scores > threshold
        return {
            "tn": int((~alarms & ~self.labels).sum()),
            "fp": int((alarms & ~self.labels).sum()),
            "fn": int((~alarms & self.labels).sum()),
            "tp": int((alarms & self.labels).sum()),
        }

    def most_wrong(self, threshold: float) -> list[str]:
        """Names, the most wrong first."""
        beyond = (self.scores - threshold) * np.where(self.labels, -1, 1)
        return [self.names[place] for place in np.argsort(-beyond, kind="stable")]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, model_file, photos) -> Evaluated:
    """A data set with names that are none of HTML's business, and a defect without a mask."""
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("report")
    dataset = Path(shutil.copytree(photos, folder / "cloth & co"))
    (dataset / "test/good/000.png").rename(dataset / "test/good" / SCRIPT)
    for part in ("test", "ground_truth"):
        (dataset / part / "stain").rename(dataset / part / KIND)
    (dataset / "ground_truth/scratch/000_mask.png").unlink()
    file = folder / "report.html"
    in_process("eval", model_file, dataset, "--report", file, "--json", folder / "m.json").worked()
    in_process("run", model_file, dataset / "test", "--jsonl", folder / "s.jsonl").worked()
    lines = [json.loads(line) for line in (folder / "s.jsonl").read_text().splitlines()]
    return Evaluated(file, json.loads((folder / "m.json").read_text()), lines)


def shown_counts(page: Page) -> dict[str, int]:
    """What the table of decisions says."""
    cells = page.page.locator("[data-count]")
    return {cell.get_attribute("data-count"): int(cell.text_content()) for cell in cells.all()}


def threshold_of(page: Page) -> float:
    """The threshold of the page, to the last bit."""
    return float(page.all("document.body.dataset.threshold"))


def names_of(page: Page) -> list[str]:
    """The images as they are shown."""
    return page.texts("#gallery .name")


# --- what is shown --------------------------------------------------------------------------------


def test_everything_is_there(opened, evaluated):
    page = opened(evaluated.file)
    assert page.texts("h1") == ["cloth & co"]
    assert page.texts("h2") == [
        *("Metrics", "Scores and threshold", "Every threshold", "Kinds of defect", "Images"),
        "How this was made",
    ]
    assert page.all("document.title") == "cloth & co – padim-edge"
    assert sorted(names_of(page)) == sorted(evaluated.names)
    assert f"good/{SCRIPT}" in names_of(page)


def test_every_image_is_a_picture(opened, evaluated):
    page = opened(evaluated.file)
    page.page.wait_for_function("[...document.images].every(i => i.complete)")
    sizes = page.all("[...document.images].map(i => [i.naturalWidth, i.src.slice(0, 15)])")
    # Photo, truth, heat map, mask: a photo below each, and of 6 defective ones one has no mask.
    assert len(sizes) == 10 * (4 + 2) + 5
    assert all(width > 0 for width, _ in sizes)
    assert {source for _, source in sizes} == {"data:image/jpeg", "data:image/png;"}
    assert page.texts("#gallery .nothing") == [
        {True: "no mask", False: "good"}[
            bool(evaluated.kinds[evaluated.names.index(name)] != "good")
        ]
        for name in names_of(page)
        if name.startswith(("good/", "scratch/000"))
    ]


def test_metrics_are_those_of_the_command_and_of_scikit_learn(opened, evaluated):
    metrics = pytest.importorskip("sklearn.metrics")
    page = opened(evaluated.file)
    rows = page.page.locator("tr[data-metric]")
    shown = {
        row.get_attribute("data-metric"): float(row.locator(".value").get_attribute("data-value"))
        for row in rows.all()
    }
    names = {
        "image AUROC": "image_auroc", "pixel AUROC": "pixel_auroc", "PRO (to 0.3)": "pro",
        "best F1": "best_f1", "recall": "recall", "precision": "precision",
        "false-alarm rate": "false_alarm_rate", "F1": "f1",
    }  # fmt: skip
    average = shown.pop("average precision")
    assert shown == {name: evaluated.metrics[field] for name, field in names.items()}
    given = (evaluated.labels, evaluated.scores)
    alarms = evaluated.scores > evaluated.threshold
    assert average == pytest.approx(metrics.average_precision_score(*given), abs=1e-9)
    assert shown["image AUROC"] == pytest.approx(metrics.roc_auc_score(*given), abs=1e-9)
    assert shown["F1"] == pytest.approx(metrics.f1_score(evaluated.labels, alarms), abs=1e-9)
    for row in rows.all():
        low, high = map(float, row.locator(".interval").text_content().split(" – "))
        value = float(row.locator(".value").get_attribute("data-value"))
        assert low - 5e-4 <= value <= high + 5e-4


def test_kinds_of_defect(opened, evaluated):
    metrics = pytest.importorskip("sklearn.metrics")
    page = opened(evaluated.file)
    rows = [
        [cell.text_content() for cell in row.locator("th, td").all()]
        for row in page.page.locator(".kinds tbody tr").all()
    ]
    wanted = []
    for kind in sorted({*evaluated.kinds} - {"good"}):
        own = evaluated.scores[evaluated.kinds == kind]
        some = np.isin(evaluated.kinds, [kind, "good"])
        auroc = metrics.roc_auc_score(evaluated.labels[some], evaluated.scores[some])
        found = f"{(own > evaluated.threshold).sum()} of {own.size}"
        wanted.append([kind, str(own.size), found, "", f"{auroc:.4f}"])
    assert [row[:5] for row in rows] == wanted


# --- photos of which nothing is known -------------------------------------------------------------


@pytest.fixture(scope="module")
def judged(tmp_path_factory, model_file, photos) -> Path:
    """The page of `run --report`: 9 photos and a file that is none."""
    folder = tmp_path_factory.mktemp("judged")
    new = folder / "new"
    new.mkdir()
    for place, photo in enumerate(sorted((photos / "test").rglob("*.png"))[:8]):
        shutil.copy(photo, new / f"{place}.png")
    shutil.copy(new / "0.png", new / SCRIPT)
    (new / "broken.png").write_bytes(b"no")
    file = folder / "report.html"
    lines = folder / "s.jsonl"
    in_process("run", model_file, new, "--report", file, "--jsonl", lines).worked()
    return file


def test_a_report_of_unknown_photos(opened, judged, model_file):
    from padim_edge.model.file import read

    page = opened(judged)
    lines = [json.loads(line) for line in judged.with_name("s.jsonl").read_text().splitlines()]
    known = [line for line in lines if "score" in line]
    wanted = sorted(known, key=lambda line: -line["score"])
    assert page.texts("h1") == ["new"]
    assert names_of(page) == [f"new/{Path(line['path']).name}" for line in wanted]
    assert page.texts("#gallery .said .number") == [f"{line['score']:.2f}" for line in wanted]
    scores = np.array([line["score"] for line in known])
    good = np.array(read(model_file, "padim").detector_info.good_scores)
    page.page.focus("#threshold")
    for key in ("Home", *["PageUp"] * 4, "End"):
        page.press(key)
        threshold = threshold_of(page)
        alarms = int((scores > threshold).sum())
        assert shown_counts(page) == {"alarm": alarms, "ok": len(scores) - alarms}
        assert page.texts("#gallery .chip").count("anomaly") == alarms
        share = f"{100 * (good > threshold).mean():.1f} %"
        assert page.texts("[data-rate=reference]") == [share]
    page.page.click("summary")
    page.page.wait_for_selector(".rest")  # filled once it is open
    assert page.texts(".rest tr")[0].startswith("new/broken.png")
    assert page.all("[...document.images].every(i => i.naturalWidth > 0)")
    assert page.all("document.images.length") == 9 * (3 + 2)


def test_a_report_of_more_photos_than_it_shows(opened, tmp_path, model_file, photos, monkeypatch):
    monkeypatch.setattr("padim_edge.detect.report.judged.PICTURES", 3)
    monkeypatch.setattr("padim_edge.detect.report.judged.NAMED", 4)
    file, lines = tmp_path / "r.html", tmp_path / "s.jsonl"
    in_process("run", model_file, photos / "test", "--report", file, "--jsonl", lines).worked()
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    order = sorted(records, key=lambda line: -line["score"])
    names = [Path(*Path(line["path"]).parts[-2:]).as_posix() for line in order]
    page = opened(file)
    assert names_of(page) == names[:3]
    assert page.texts("summary") == ["7 more images, without pictures; 3 of them only counted"]
    page.page.click("summary")
    page.page.wait_for_selector(".rest")  # filled once it is open
    assert page.texts(".rest td:first-child") == names[3:7]
    assert sum(shown_counts(page).values()) == 10


def test_an_evaluation_of_more_images_than_it_shows(
    opened, evaluated, tmp_path, model_file, monkeypatch
):
    monkeypatch.setattr("padim_edge.detect.report.evaluated.PICTURES", 4)
    monkeypatch.setattr("padim_edge.detect.report.evaluated.NAMED", 5)
    file = tmp_path / "r.html"
    in_process("eval", model_file, evaluated.file.parent / "cloth & co", "--report", file).worked()
    page = opened(file)
    names = evaluated.most_wrong(evaluated.threshold)
    assert names_of(page) == names[:4]
    page.page.click("summary")
    page.page.wait_for_selector(".rest")  # filled once it is open
    assert page.texts(".rest td:first-child") == names[4:9]
    assert shown_counts(page) == evaluated.counts(evaluated.threshold)


def test_a_score_that_is_no_number_is_anomalous_at_any_threshold(opened, tmp_path, monkeypatch):
    """A broken model's: made up, because no file of ours says so."""
    from padim_edge.detect.report.contents import Group, Kind, Layers, Report, Role, Shown
    from padim_edge.detect.report.page import page as rendered

    photo = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="
    file = tmp_path / "r.html"
    shown = tuple(
        Shown(f"{score}.png", 0, score, Layers(1, 1, photo)) for score in (None, 3.0, 1.0)
    )
    group = Group("photos", Role.UNKNOWN, (1.0, 3.0))
    file.write_bytes(rendered(Report(Kind.RUN, "x", (), 2.0, 2.0, (1.0, 3.0), (group,), shown, ())))
    page = opened(file)
    assert shown_counts(page) == {"alarm": 2, "ok": 1}
    assert names_of(page)[0] == "None.png"
    page.page.focus("#threshold")
    page.press("End")
    assert shown_counts(page) == {"alarm": 1, "ok": 2}
    assert page.texts("#gallery .said")[0] == "not a numberanomaly"


def test_a_report_of_nothing_is_a_page_too(opened, tmp_path, model_file):
    (tmp_path / "broken.png").write_bytes(b"no")
    file = tmp_path / "report.html"
    in_process("run", model_file, tmp_path, "--report", file).failed(
        1, "none of the 1 image(s)", said=("0 ok",)
    )
    page = opened(file)
    assert names_of(page) == []
    assert shown_counts(page) == {"alarm": 0, "ok": 0}


# --- photos of a fit -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, embedding_file, photos) -> Path:
    """The page of `fit --report`: 12 good photos, and one of white paper."""
    folder = tmp_path_factory.mktemp("fitted")
    mine = Path(shutil.copytree(photos / "train" / "good", folder / "mine"))
    Image.new("RGB", (96, 96), "white").save(mine / "odd.png")
    in_process(
        *("fit", embedding_file, mine, "-o", folder / "padim.onnx"),
        *("--report", folder / "report.html"),
    ).worked()
    return folder / "report.html"


def test_the_photo_that_does_not_belong_is_on_top(opened, fitted):
    from padim_edge.model.file import read

    page = opened(fitted)
    info = read(fitted.with_name("padim.onnx"), "padim").detector_info
    assert len(names_of(page)) == 13
    assert names_of(page)[0] == "mine/odd.png"
    assert page.texts("#gallery .chip")[0] == "unlike the others"
    scores = [float(value) for value in page.all(
        "[...document.querySelectorAll('#gallery [data-score]')].map(e => e.dataset.score)"
    )]  # fmt: skip
    # These photos are each a group of their own, so all scores are those of the threshold.
    assert sorted(scores) == list(info.good_scores)
    assert threshold_of(page) == info.threshold
    above = int((np.array(scores) > info.threshold).sum())
    assert shown_counts(page) == {"alarm": above, "ok": 13 - above}
    assert page.all("[...document.images].every(i => i.naturalWidth > 0)")
    assert page.all("document.images.length") == 13 * (2 + 1)  # photo, and heat map over it
    assert "leave-one-out over 13 images" in page.texts(".notes")[0]


def test_photos_that_were_left_out_are_shown(opened, tmp_path, embedding_file, fitted):
    file = tmp_path / "r.html"
    done = in_process(
        *("fit", embedding_file, fitted.with_name("mine"), "-o", tmp_path / "padim.onnx"),
        *("--reject-outliers", "--report", file),
    ).worked()
    page = opened(file)
    rejected = [name for name in names_of(page) if f"{name} (" in done.stderr]
    assert rejected[0] == "mine/odd.png"
    assert page.texts("#gallery .card:has(.nothing) .name") == rejected
    assert page.texts("#gallery .chip")[0] == "left out"
    page.page.select_option("#filter", label="left out")
    assert names_of(page) == rejected
    page.page.select_option("#filter", label="photos of the fit")
    assert len(names_of(page)) == 13 - len(rejected)


# --- the threshold --------------------------------------------------------------------------------


def test_it_begins_at_the_files_threshold_to_the_last_bit(opened, evaluated):
    page = opened(evaluated.file)
    assert threshold_of(page) == evaluated.threshold
    assert shown_counts(page) == evaluated.counts(evaluated.threshold)
    assert page.page.locator("#own").is_disabled()


def test_the_slider_changes_counts_and_decisions(opened, evaluated):
    page = opened(evaluated.file)
    page.page.focus("#threshold")
    seen = set()
    for keys in (["Home"], *[["PageUp"]] * 9, ["End"], ["ArrowLeft"] * 3):
        page.press(*keys)
        threshold = threshold_of(page)
        counts = evaluated.counts(threshold)
        assert shown_counts(page) == counts
        seen.add(tuple(counts.values()))
        wrong = counts["fp"] + counts["fn"]
        assert page.texts("#count") == [f"10 images, {wrong} of all 10 wrong at this threshold"]
        assert len(page.texts("#gallery .chip[data-kind=wrong]")) == wrong
        found = page.texts("#gallery .card:has(.chip[data-kind=right]) .chip")
        assert found.count("found") == counts["tp"]
        assert found.count("passed") == counts["tn"]
        assert names_of(page) == evaluated.most_wrong(threshold)
        recall = counts["tp"] / (counts["tp"] + counts["fn"])
        assert page.texts("[data-rate=recall]") == [f"{100 * recall:.1f} %"]
        per_kind = page.texts("[data-found]")
        assert sum(int(text.split()[0]) for text in per_kind) == counts["tp"]
    assert len(seen) > 5
    page.page.click("#own")
    assert threshold_of(page) == evaluated.threshold


def test_a_threshold_as_a_number_is_exact(opened, evaluated):
    page = opened(evaluated.file)
    # A score itself: not exceeded by it.
    score = float(np.sort(evaluated.scores)[4])
    page.page.fill("#exact", repr(score))
    page.press("Enter")
    assert threshold_of(page) == score
    assert shown_counts(page) == evaluated.counts(score)
    page.page.fill("#exact", "-1")
    page.press("Enter")
    assert threshold_of(page) == score


def test_the_threshold_is_dragged_on_the_histogram(opened, evaluated):
    page = opened(evaluated.file)
    box = page.page.locator(".histogram").bounding_box()
    middle = box["y"] + box["height"] / 2
    page.page.mouse.move(box["x"] + 10, middle)
    page.page.mouse.down()
    page.page.mouse.move(box["x"] + box["width"] - 1, middle, steps=4)
    page.page.mouse.up()
    threshold = threshold_of(page)
    assert threshold > evaluated.scores.max()
    assert shown_counts(page) == evaluated.counts(threshold)


def test_a_threshold_of_the_users_is_beside_the_files(opened, evaluated, tmp_path, model_file):
    dataset = evaluated.file.parent / "cloth & co"
    own = float(np.median(evaluated.scores))
    file = tmp_path / "own.html"
    in_process("eval", model_file, dataset, "--threshold", own, "--report", file).worked()
    page = opened(file)
    assert threshold_of(page) == own
    page.page.click("#own")
    assert threshold_of(page) == evaluated.threshold


# --- order and keys -------------------------------------------------------------------------------


def test_sorting_and_filtering(opened, evaluated):
    page = opened(evaluated.file)
    assert names_of(page) == evaluated.most_wrong(evaluated.threshold)
    order = np.argsort(-evaluated.scores, kind="stable")
    for value, wanted in {
        "high": [evaluated.names[place] for place in order],
        "low": [evaluated.names[place] for place in order[::-1]],
        "name": sorted(evaluated.names),
    }.items():
        page.page.select_option("#sort", value)
        assert names_of(page) == wanted
    page.page.select_option("#filter", label=KIND)
    assert names_of(page) == sorted(n for n in evaluated.names if n.startswith(KIND))
    page.page.select_option("#filter", "wrong")
    counts = evaluated.counts(evaluated.threshold)
    assert len(names_of(page)) == counts["fp"] + counts["fn"]


def test_by_keyboard_alone(opened, evaluated):
    page = opened(evaluated.file)
    reached = []
    for _ in range(12):
        page.press("Tab")
        reached.append(page.focused("e => e.id || e.className"))
        if reached[-1] == "card":
            break
    assert [one for one in reached if one != "scroll"] == [
        *("threshold", "exact", "sort", "filter", "card")
    ]
    name = "e => e.querySelector('.name').textContent"
    names = names_of(page)
    assert page.focused(name) == names[0]
    page.press("ArrowRight", "ArrowRight", "ArrowLeft")
    assert page.focused(name) == names[1]
    page.press("End")
    assert page.focused(name) == names[-1]
    page.press("Home", "ArrowDown")  # two in a row
    assert page.focused(name) == names[2]
    page.press("Enter")
    dialog = page.page.locator("#viewer")
    assert dialog.is_visible()
    assert dialog.locator(".name").text_content() == names[2]
    page.press("ArrowRight", "ArrowRight")
    assert dialog.locator(".name").text_content() == names[4]
    assert dialog.locator("img").count() > 4
    page.press("Escape")
    assert not dialog.is_visible()
    # A dialog tells of its end in a task of its own.
    page.page.wait_for_function(
        "name => document.activeElement.querySelector('.name')?.textContent === name", arg=names[4]
    )
    assert page.focused(name) == names[4]
    assert page.focused("e => e.matches(':focus-visible')")


def test_what_is_drawn_has_a_name_for_those_who_do_not_see_it(opened, evaluated):
    page = opened(evaluated.file)
    assert "false alarm" in page.page.locator("#threshold").get_attribute("aria-valuetext")
    assert page.all("[...document.querySelectorAll('svg')].every("
                    "s => s.getAttribute('aria-label') || s.ariaHidden === 'true')")  # fmt: skip
    assert page.all("[...document.images].every(i => i.hasAttribute('alt'))")
    assert page.all("document.documentElement.lang") == "en"


# --- eyes and screens -----------------------------------------------------------------------------


def luminance(colour: str) -> float:
    """Relative luminance of "rgb(1, 2, 3)" (WCAG 2.2)."""
    parts = np.array([float(one) for one in colour[colour.index("(") + 1 : -1].split(",")[:3]])
    linear = np.where(
        parts / 255 <= 0.04045, parts / 255 / 12.92, ((parts / 255 + 0.055) / 1.055) ** 2.4
    )
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_dark_and_light_differ_and_both_can_be_read(opened, evaluated):
    papers = []
    for scheme in ("light", "dark"):
        page = opened(evaluated.file, color_scheme=scheme)
        paper = page.all("getComputedStyle(document.body).backgroundColor")
        papers.append(luminance(paper))
        for selector in (
            "body",
            ".hint",
            ".kind",
            ".facts dt",
            "thead th",
            ".chip",
            "summary, .ends",
        ):
            colour = page.all(f"getComputedStyle(document.querySelector('{selector}')).color")
            bright, dim = sorted([luminance(colour), papers[-1]], reverse=True)
            assert (bright + 0.05) / (dim + 0.05) >= 4.5, (scheme, selector)
    assert papers[0] > 0.9
    assert papers[1] < 0.05


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_nothing_is_wider_than_the_screen(opened, evaluated, width):
    options = PHONE if width < 700 else {}
    page = opened(evaluated.file, **options | {"viewport": {"width": width, "height": 700}})
    assert page.all("document.documentElement.scrollWidth") <= width
    page.page.locator(".card").first.click()
    assert page.all("document.getElementById('viewer').scrollWidth") <= width
    assert page.all("document.documentElement.scrollWidth") <= width


# --- what it must not do --------------------------------------------------------------------------


def test_nothing_else_can_run_or_be_loaded(browser, evaluated):
    page = Page(browser, evaluated.file)
    assert page.all("typeof window.evil") == "undefined"
    page.all("""() => {
        const script = document.createElement('script');
        script.textContent = 'window.evil = 1';
        const image = new Image();
        image.src = 'https://example.invalid/a.png';
        const button = document.createElement('button');
        button.setAttribute('onclick', 'window.evil = 1');
        document.body.append(script, image, button);
        button.click();
    }""")
    refused = page.page.evaluate("fetch('https://example.invalid/').then(() => false, () => true)")
    assert refused
    assert page.all("typeof window.evil") == "undefined"
    assert page.refused == {"https://example.invalid/a.png": "csp"}
    assert len(page.troubles) >= 4
    assert all("Content Security Policy" in one for one in page.troubles), page.troubles
    page.context.close()


def test_without_script_it_says_so(browser, evaluated):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(evaluated.file.resolve().as_uri())
    assert "allow it to run" in page.locator("main").inner_text()
    context.close()
