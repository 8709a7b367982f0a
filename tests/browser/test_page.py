"""Pages in a real Chromium: what the sliders say is what Python says, nothing is fetched, and all of it can be read on
a telephone, in the dark, on paper and with the keyboard."""

import shutil
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skindist.evaluation.metrics import METRICS
from skindist.report.live import show_report
from skindist.report.run_page import write_run_page
from skindist.report.runs_page import write_runs_page
from skindist.report.scores import Scores, read_scores
from skindist.report.words import figure_text
from skindist.run.folder import Run
from tests.helpers.made_run import invented, made_run, prepared

pytestmark = pytest.mark.browser
NAMES = ("sensitivity", "specificity", "ppv", "npv", "number_needed_to_biopsy")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, the machine's own or the one that `playwright install chromium` has brought."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    own = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with playwright.sync_playwright() as started:
        if not own and not Path(started.chromium.executable_path).exists():
            pytest.skip("needs Chromium: apt-get install chromium, or playwright install chromium")
        opened = started.chromium.launch(executable_path=own, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """10,000 test images, and its page."""
    made = made_run(tmp_path_factory.mktemp("large") / "run", *invented(10_000))
    write_run_page(made)
    return made


@pytest.fixture(scope="module")
def pictured(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run on drawn lesions, with pictures."""
    folder = tmp_path_factory.mktemp("pictured")
    return write_run_page(made_run(folder / "run", *prepared(demo, folder / "table.csv")))


class Watched:
    """A page that is opened, with all that the console says and all that is asked for."""

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.address = file.resolve().as_uri()
        self.page.goto(self.address)

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, *error: object) -> None:
        self.context.close()
        if error == (None, None, None):
            assert self.said == []
            assert [url for url in self.asked if url != self.address and not url.startswith("data:")] == []


def now(page: Any) -> dict[str, float]:
    """What the page says at the threshold and prevalence that are set."""
    script = "names => names.map(name => document.getElementById(`now-${name}`).dataset.value)"
    return {name: float(value) for name, value in zip(NAMES, page.evaluate(script, list(NAMES)), strict=True)}


def expected(test: Scores, threshold: float, prevalence: float) -> dict[str, float]:
    """The same from the table of metrics."""
    values = {name: METRICS[name](test.probabilities, test.labels, threshold, prevalence) for name in NAMES[:4]}
    with np.errstate(divide="ignore"):
        return {**values, NAMES[4]: float(1 / np.float64(values["ppv"]))}


def test_the_sliders_say_what_python_says(browser: Any, run: Run) -> None:
    test, results = read_scores(run, "test"), run.results()
    chosen = results["operating_point"]["threshold"]
    rng = np.random.default_rng(0)
    thresholds = [chosen, 0.0, 1.0, 0.5, *rng.random(40), *rng.choice(test.probabilities, 40)]
    with Watched(browser, run.report) as page:
        frozen = {name: results["operating_point"]["test"][name]["value"] for name in NAMES}
        assert now(page) == pytest.approx(frozen, abs=1e-12), "it opens at the frozen threshold and stated prevalence"
        for threshold in map(float, thresholds):
            prevalence = float(rng.uniform(0.001, 0.9))
            page.locator("#threshold-field").fill(repr(threshold))
            page.locator("#prevalence-field").fill(repr(100 * prevalence))
            assert now(page) == pytest.approx(expected(test, threshold, prevalence), rel=1e-9, nan_ok=True), threshold
        page.get_by_role("button", name="chosen on validation").click()
        page.get_by_role("button", name="as stated").click()
        assert now(page) == pytest.approx(frozen, abs=1e-12)
        page.get_by_role("button", name="as here").click()
        assert now(page) == pytest.approx(expected(test, chosen, float(test.labels.mean())), rel=1e-9)


@pytest.mark.parametrize("share", [None, 0.02])
def test_the_sliders_round_as_python_does(browser: Any, tmp_path: Path, share: float | None) -> None:
    """16 malignant and 64 benign images: 1 of 16 is 6.25 %, which lies between two digits."""
    small = made_run(tmp_path / "run", *invented(80))
    test = read_scores(small, "test")
    with Watched(browser, write_run_page(small)) as page:
        page.get_by_role("button", name="as stated" if share else "as here").click()
        for threshold in np.unique(test.probabilities).tolist():
            page.locator("#threshold-field").fill(repr(threshold))
            values = {n: METRICS[n](test.probabilities, test.labels, threshold, share) for n in NAMES[:4]}
            values[NAMES[4]] = 1 / values["ppv"] if values["ppv"] else np.nan
            script = "names => names.map(name => document.getElementById(`now-${name}`).value)"
            said = dict(zip(NAMES, page.evaluate(script, list(NAMES)), strict=True))
            assert said == {name: figure_text(value, name) for name, value in values.items()}, threshold


def test_the_sliders_move_with_the_keyboard(browser: Any, run: Run) -> None:
    test = read_scores(run, "test")
    with Watched(browser, run.report) as page:
        page.locator("#threshold-field").fill("0.25")
        slider = page.get_by_role("slider", name="Threshold")
        slider.focus()
        mark = "document.querySelector('#roc circle.mark').getAttribute('cy')"
        before, prevalence = page.evaluate(mark), 0.02
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        assert float(slider.input_value()) == 0.253
        assert now(page) == pytest.approx(expected(test, 0.253, prevalence), rel=1e-9)
        assert page.locator("#threshold-field").input_value() == "0.253"
        assert slider.get_attribute("aria-valuetext") == "0.253"
        page.keyboard.press("End")
        assert now(page)["specificity"] == 1
        assert page.evaluate(mark) != before
        page.keyboard.press("Home")
        assert now(page)["sensitivity"] == 1
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "threshold-field"
        page.get_by_role("slider", name="Prevalence").focus()
        page.keyboard.press("ArrowRight")
        assert now(page) == pytest.approx(expected(test, 0, 0.021), rel=1e-9, nan_ok=True)


def test_a_field_that_holds_no_number_changes_nothing(browser: Any, run: Run) -> None:
    with Watched(browser, run.report) as page:
        before, field = now(page), page.locator("#threshold-field")
        for wrong in ("", "2", "-1"):
            field.fill(wrong)
            assert now(page) == before
            assert field.get_attribute("aria-invalid") == "true"
        field.fill("0.9")
        assert field.get_attribute("aria-invalid") == "false"


def test_marks_lie_where_the_figures_say(browser: Any, run: Run) -> None:
    """The circle lies on the curve that matplotlib has drawn: its axes and the script's are the same."""
    with Watched(browser, run.report) as page:
        page.locator("#threshold-field").fill("0")
        frame, at, lines = page.evaluate("""() => {
          const plot = document.getElementById('roc'), circle = plot.querySelector('circle.mark');
          const lines = [...plot.querySelectorAll('path')].map(p => p.getAttribute('d').match(/[\\d.]+/g).map(Number));
          return [plot.dataset.frame.split(' ').map(Number), [circle.cx, circle.cy].map(c => c.baseVal.value), lines]
        }""")
        left, bottom, right, top, x0, y0, x1, y1 = frame
        one = [left + (right - left) * (1 - x0) / (x1 - x0), bottom + (top - bottom) * (1 - y0) / (y1 - y0)]
        assert at == pytest.approx(one)
        rising = [line for line in lines if len(line) == 4 and line[0] < line[2] and line[1] > line[3]]
        (ends,) = rising  # the diagonal of chance, from (0, 0) to (1, 1)
        assert at == pytest.approx(ends[2:], abs=0.1)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_no_width_scrolls_sideways(
    browser: Any, pictured: Path, run: Run, tmp_path: Path, width: int, theme: str
) -> None:
    both = write_runs_page([run, Run(pictured.parent)], tmp_path / "both.html")
    for file in (pictured, run.report, both):
        with Watched(browser, file, viewport={"width": width, "height": 740}, color_scheme=theme) as page:
            page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")


@pytest.mark.parametrize("width", [400, 1100])
def test_tables_of_a_run_are_whole_and_intervals_have_room(browser: Any, pictured: Path, width: int) -> None:
    with Watched(browser, pictured, viewport={"width": width, "height": 900}) as page:
        page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
        assert page.evaluate("[...document.querySelectorAll('.scroll')].every(s => s.scrollHeight <= s.clientHeight)")
        lines = "s => s.getBoundingClientRect().height / parseFloat(getComputedStyle(s).lineHeight)"
        assert page.evaluate(f"Math.max(...[...document.querySelectorAll('td .interval')].map({lines}))") < 2.5


@pytest.mark.parametrize("width", [360, 820, 1000, 1100])
def test_a_figure_that_is_undefined_stays_in_its_cell(browser: Any, pictured: Path, width: int) -> None:
    """At a threshold above all probabilities nothing is called malignant, so there is no PPV."""
    with Watched(browser, pictured, viewport={"width": width, "height": 900}) as page:
        page.locator("#threshold-field").fill("1")
        assert page.locator("#now-ppv").inner_text() == "undefined"
        assert page.evaluate("""[...document.querySelectorAll('.outcome output')].every(output => {
          const [inner, outer] = [output, output.closest('div')].map(part => part.getBoundingClientRect());
          return inner.right <= outer.right + 0.5;
        })""")


CONTRAST = """selector => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = colour => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const linear = c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = rgba(getComputedStyle(e).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255];
  };
  const shown = [...document.querySelectorAll(selector)].filter(e => e.textContent.trim() && e.getClientRects().length);
  return Math.min(...shown.map(e => {
    const style = getComputedStyle(e);
    const [ink, paper] = [light(rgba(e.closest('svg') ? style.fill : style.color)), light(behind(e))];
    return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  }));
}"""


def contrast(page: Any, selector: str) -> float:
    """The least contrast (WCAG 2.2) of any text under a selector with the nearest background that is painted."""
    return float(page.evaluate(CONTRAST, selector))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_and_plots_stand_out_in_both_themes(browser: Any, pictured: Path, theme: str) -> None:
    with Watched(browser, pictured, color_scheme=theme) as page:
        backs = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
        assert (max(backs) < 60) == (theme == "dark")
        assert (
            contrast(page, "p, li, th, td, h1, h2, h3, figcaption, a, summary, label, button, dt, dd, svg text") >= 4.5
        )


def test_paper_is_white_and_whole(browser: Any, pictured: Path) -> None:
    with Watched(browser, pictured, color_scheme="dark") as page:
        page.emulate_media(media="print")
        assert contrast(page, "p, th, td, h1, h2, h3, figcaption, svg text") >= 4.5
        assert not page.locator(".controls").is_visible()
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.locator("details:not([open])").count() == 0
        assert page.locator("#now-sensitivity").is_visible()
        whole = "s => getComputedStyle(s).overflowX === 'visible' && getComputedStyle(s).maxHeight === 'none'"
        assert page.evaluate(f"[...document.querySelectorAll('.scroll')].every({whole})"), "no table is cut off"
        assert len(page.pdf()) > 10_000


@pytest.mark.parametrize("name", ["tf_efficientnetv2_s_in21k_ft_in1k_with_a_rate_of_0_01", "20261128-114325-25630-vit"])
def test_six_runs_fit_on_paper(browser: Any, pictured: Path, tmp_path: Path, name: str) -> None:
    """An A4 page is 180 mm wide within its margins: 680 pixels."""
    runs = [Run(Path(shutil.copytree(pictured.parent, tmp_path / f"{name}_{at}"))) for at in range(6)]
    for at, run in enumerate(runs):
        run.config_file.write_text(run.config_file.read_text().replace("seed: 0", f"seed: {at}"))
    with Watched(browser, write_runs_page(runs, tmp_path / "six.html"), viewport={"width": 680, "height": 960}) as page:
        page.emulate_media(media="print")
        widths = page.evaluate("[...document.querySelectorAll('table')].map(table => table.offsetWidth)")
        assert len(widths) == 4
        assert max(widths) <= 680


def test_a_verdict_on_paper_keeps_off_its_bar(browser: Any, pictured: Path) -> None:
    with Watched(browser, pictured) as page:
        page.emulate_media(media="print")
        assert page.evaluate("parseFloat(getComputedStyle(document.querySelector('.verdict-box')).paddingLeft)") > 10


def test_a_screen_reader_finds_its_way(browser: Any, pictured: Path) -> None:
    with Watched(browser, pictured) as page:
        levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map(h => Number(h.tagName[1]))")
        assert levels[0] == 1
        assert all(after - before <= 1 for before, after in pairwise(levels))
        assert page.evaluate("[...document.querySelectorAll('svg.plot')].every(s => s.getAttribute('aria-label'))")
        assert page.evaluate("[...document.querySelectorAll('table')].every(t => t.caption)")
        assert page.evaluate(
            "[...document.querySelectorAll('input')].every(i => i.labels.length || i.getAttribute('aria-labelledby'))"
        )
        assert page.get_by_role("slider").count() == 2
        assert page.get_by_role("heading", name="Verdict").count() == 1
        links = page.evaluate("[...document.querySelectorAll('nav a')].map(a => a.hash.slice(1))")
        assert page.evaluate("ids => ids.every(id => document.getElementById(id))", links)
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "To the verdict"


def test_without_a_script_the_figures_are_there(browser: Any, pictured: Path) -> None:
    with Watched(browser, pictured, java_script_enabled=False) as page:
        assert page.get_by_text("The sliders need JavaScript").is_visible()
        assert page.get_by_text("At the frozen threshold").is_visible()
        assert not page.locator(".controls").is_visible()


def test_without_a_script_the_marks_are_where_it_puts_them(browser: Any, run: Run) -> None:
    script = """() => [...document.querySelectorAll('.plot .mark')].map(
        mark => ['x', 'cx', 'cy', 'y', 'height'].map(name => Number(mark.getAttribute(name))))"""
    marks = []
    for enabled in (True, False):
        with Watched(browser, run.report, java_script_enabled=enabled) as page:
            marks.append(np.array(page.evaluate(script)))
    assert marks[0].shape == (3, 5)
    assert marks[1] == pytest.approx(marks[0], abs=1e-3)


def test_ten_thousand_images_open_in_two_seconds(browser: Any, run: Run, tmp_path: Path) -> None:
    empty = tmp_path / "empty.html"
    empty.write_text("<!doctype html><title>Empty</title>")
    assert run.report.stat().st_size < 1e6
    with Watched(browser, run.report):
        pass  # the browser is warm
    seconds = []
    for page in (empty, run.report):
        began = time.monotonic()
        with Watched(browser, page) as opened:
            assert page == empty or now(opened)["sensitivity"] > 0
            seconds.append(time.monotonic() - began)
    assert seconds[1] < 2 + 10 * seconds[0], "beside what a busy machine takes for a page without anything"


def test_links_of_a_page_in_a_notebook_stay_within_it(browser: Any, run: Run, tmp_path: Path) -> None:
    page = show_report(run.path)
    assert len(repr(page)) < 100, "a notebook keeps it beside the page"
    notebook = tmp_path / "notebook.html"
    notebook.write_text(f"<!doctype html><h1>The notebook</h1>{page._repr_html_()}")
    with Watched(browser, notebook) as outer:
        outer.frame_locator("iframe").get_by_role("link", name="Threshold").click()
        (frame,) = outer.frames[1:]
        frame.wait_for_url("**#threshold")
        assert frame.url == "about:srcdoc#threshold"
        assert frame.get_by_role("heading", name="Verdict").count() == 1
