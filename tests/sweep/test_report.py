"""The page of a sweep, in a real browser; the commands on it; its pictures."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import shlex
import shutil

import numpy as np
import pytest

from rosler_jax import config as configs
from rosler_jax.cli import _main
from rosler_jax.cli._config_options import build_config, given_options
from rosler_jax.config import TrainConfig
from rosler_jax.sweep import report

FLAGS = (
    "headless=new",
    "no-sandbox",
    "disable-gpu",
    "disable-quic",
    "no-first-run",
    "disable-sync",
    "disable-background-networking",
    "disable-component-update",
    "disable-dev-shm-usage",
)
AXES = ["learning_rate", "rank", "method"]


def make_rows(count=40, metric="accuracy"):
    """Rows such as a sweep writes; two failed, one of them hostile to a page."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        varied = {"learning_rate": float(rng.uniform(1e-4, 1e-2)), "rank": int(rng.integers(2, 9))}
        varied["method"] = ("chain", "low-rank")[i % 2]
        data = "</script><script>alert(1)</script>" if i == 1 else "mnist5k"
        config = TrainConfig(**varied, hidden=(64,), data=data, seed=i)
        failed = i in (3, 4)
        accuracy = math.nan if failed else float(rng.uniform(0.5, 0.95))
        rows.append(
            {
                "member": i,
                **varied,
                "status": "failed" if failed else "done",
                f"validation_{metric}": accuracy,
                f"test_{metric}": accuracy,
                "file_bytes": 0 if failed else int(rng.integers(2000, 30000)),
                "compression": accuracy,
                "seconds": 0.5,
                "epochs_done": 3,
                "curve": [0.2, math.nan if failed else 0.5, accuracy],
                "config": json.dumps(configs.to_dict(config)),
            }
        )
    return rows


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium that logs its console and every request."""
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no chromium with chromedriver on the PATH (Debian: chromium, chromium-driver)")
    options = selenium.ChromeOptions()
    options.binary_location = binary
    for flag in FLAGS:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    yield driver
    driver.quit()


def requests(browser):
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [e for e in events if e["method"] == "Network.requestWillBeSent"]
    return [e["params"]["request"]["url"] for e in sent]


def shown(browser, column):
    cells = browser.find_elements("css selector", f"#members tbody td.{column}")
    return [cell.text for cell in cells]


@pytest.mark.slow
def test_the_page_in_a_browser(browser, tmp_path):
    rows = make_rows()
    report.write_report(tmp_path, AXES, rows)
    browser.get((tmp_path / "report.html").as_uri())
    assert browser.get_log("browser") == []
    outside = [url for url in requests(browser) if not url.startswith(("file:", "data:"))]
    assert outside == []

    good = report.best(rows)
    assert len(browser.find_elements("css selector", "#pareto circle.dot")) == len(good) == 38
    assert len(browser.find_elements("css selector", "#coordinates polyline")) == len(good)
    assert len(browser.find_elements("css selector", "#curves polyline")) == report.CURVES
    (front,) = browser.find_elements("css selector", "#pareto path.front")
    assert front.get_attribute("d").count("V") == len(report.pareto(good)) - 1
    assert front.rect["width"] > 100
    assert "40 members: 38 done" in browser.find_element("id", "counts").text

    # Sorted by accuracy at first; then by bytes, rising and falling, what has none last.
    assert shown(browser, "member")[:38] == [str(row["member"]) for row in good]
    buttons = browser.find_elements("css selector", "#members th button")
    (by_bytes,) = [b for b in buttons if b.text == "file_bytes"]
    for rising in (False, True):
        browser.execute_script("arguments[0].click()", by_bytes)
        sizes = [int(t.replace(",", "")) for t in shown(browser, "file_bytes")]
        assert sizes == sorted((r["file_bytes"] for r in rows), reverse=not rising)
    (by_method,) = [b for b in buttons if b.text == "method"]
    browser.execute_script("arguments[0].click()", by_method)
    assert shown(browser, "method") == sorted(r["method"] for r in rows)

    # Hover and choice.
    dot = browser.find_elements("css selector", "#pareto circle.dot")[5]
    browser.execute_script(
        "arguments[0].dispatchEvent(new MouseEvent('mousemove', {bubbles: true}))", dot
    )
    assert "validation_accuracy:" in browser.find_element("id", "tip").text
    browser.execute_script("arguments[0].dispatchEvent(new MouseEvent('click'))", dot)
    member = int(dot.get_attribute("data-member"))
    expected = configs.command_line(configs.from_dict(json.loads(rows[member]["config"])))
    assert expected in browser.find_element("id", "chosen").text

    browser.find_element("id", "filter").send_keys("low-rank")
    assert set(shown(browser, "method")) == {"low-rank"}
    assert browser.get_log("browser") == []


def clustered_rows():
    rows = make_rows()
    for row in rows:
        if row["file_bytes"] and row["member"] % 3 == 0:  # a second cluster, a hundred times larger
            row["file_bytes"] = 2_000_000 + row["file_bytes"]
    return rows


@pytest.fixture
def sized(browser):
    """Gives the window's contents a width, and in the end their own again."""
    yield lambda width: browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def overlap(a, b):
    return all(
        a[k] < b[k] + b[n] and b[k] < a[k] + a[n] for k, n in (("x", "width"), ("y", "height"))
    )


@pytest.mark.slow
@pytest.mark.parametrize("width", [1400, 390])
def test_the_page_can_be_read(browser, sized, tmp_path, width):
    report.write_report(tmp_path, AXES, clustered_rows())
    sized(width)
    browser.get((tmp_path / "report.html").as_uri())
    assert browser.get_log("browser") == []
    beside = "const e = document.documentElement; return e.scrollWidth - e.clientWidth"
    assert browser.execute_script(beside) == 0

    # Between the clusters a band, of a width that leaves most to the front.
    box = browser.find_element("css selector", "#pareto path.front").rect["width"]
    (band,) = browser.find_elements("css selector", "#pareto rect.break")
    assert 0 < band.rect["width"] < box / 10
    dots = browser.find_elements("css selector", "#pareto circle.dot")
    at = sorted(d.rect["x"] for d in dots)
    assert max(b - a for a, b in itertools.pairwise(at)) < box / 3

    # Letters are as large as elsewhere, and none is written over others.
    for picture in ("pareto", "curves", "coordinates"):
        words = [e.rect for e in browser.find_elements("css selector", f"#{picture} text")]
        assert len(words) > 4 and all(10 <= word["height"] <= 20 for word in words)
        assert not [pair for pair in itertools.combinations(words, 2) if overlap(*pair)]

    # What is written on the axes stands on plates in front of the lines, the chosen one's too.
    children = (
        "return [...document.querySelectorAll('#coordinates > g')].map(g => g.className.baseVal)"
    )
    assert browser.execute_script(children) == ["", "labels"]
    plates = browser.find_elements("css selector", "#coordinates .labels rect")
    words = browser.find_elements("css selector", "#coordinates .labels rect + text")
    assert len(plates) == len(words) > 6
    for plate, word in zip(plates, words, strict=True):
        assert plate.rect["x"] <= word.rect["x"] + 1
        right = [e.rect["x"] + e.rect["width"] for e in (plate, word)]
        assert right[0] >= right[1] - 1

    # Commands are seen whole.
    inside = browser.find_element("css selector", "#members").find_element("xpath", "..").rect
    for code in browser.find_elements("css selector", "#members td.command code")[:5]:
        assert code.rect["x"] + code.rect["width"] <= inside["x"] + inside["width"]
        assert browser.execute_script("return arguments[0].scrollWidth", code) <= code.rect["width"]


def test_pictures_follow_the_window(browser, sized, tmp_path):
    report.write_report(tmp_path, AXES, make_rows())
    browser.get((tmp_path / "report.html").as_uri())
    for width in (1400, 390):
        sized(width)
        drawn = """
            const [width, done] = arguments, svg = document.getElementById("pareto");
            const drawn = () => innerWidth === width
              && Math.abs(svg.viewBox.baseVal.width - svg.clientWidth) < 1;
            const look = () => drawn() ? done(true) : setTimeout(look, 20);
            look();"""
        assert browser.execute_async_script(drawn, width)
        assert len(browser.find_elements("css selector", "#pareto circle.dot.on")) == 1


def test_members_are_chosen_by_keyboard(browser, tmp_path):
    keys = pytest.importorskip("selenium.webdriver").Keys
    rows = make_rows()
    for row in rows[20:]:
        row["validation_accuracy"] -= row["member"] / 100
        row["file_bytes"] //= row["member"]
    report.write_report(tmp_path, AXES, rows)
    browser.get((tmp_path / "report.html").as_uri())
    front = [row["member"] for row in report.pareto(report.best(rows))]
    assert len(front) > 2

    def chosen():
        return browser.find_element("id", "chosen").text.split(",")[0]

    assert chosen() == f"member: {front[-1]}"
    picture = browser.find_element("id", "pareto")
    for key, member in (
        (keys.ARROW_LEFT, front[-2]),
        (keys.ARROW_LEFT, front[-3]),
        (keys.ARROW_RIGHT, front[-2]),
        (keys.ARROW_RIGHT, front[-1]),
        (keys.ARROW_RIGHT, front[-1]),
    ):
        picture.send_keys(key)
        assert chosen() == f"member: {member}"
    button = browser.find_elements("css selector", "#members td.member button")[7]
    button.send_keys(keys.ENTER)
    assert chosen() == f"member: {button.text}" != f"member: {front[-1]}"


def test_any_metric_in_its_direction(browser, tmp_path):
    rows = make_rows(metric="rmse")
    report.write_report(tmp_path, AXES, rows, "rmse", larger_is_better=False)
    browser.get((tmp_path / "report.html").as_uri())
    assert browser.get_log("browser") == []
    ranked = report.best(rows, "rmse", larger_is_better=False)
    values = [row["validation_rmse"] for row in ranked]
    assert values == sorted(values)
    assert shown(browser, "member")[:38] == [str(row["member"]) for row in ranked]
    assert f"member: {ranked[0]['member']}," in browser.find_element("id", "chosen").text
    assert "Validation rmse against bytes" in browser.find_element("tag name", "body").text
    path = browser.find_element("css selector", "#pareto path.front").get_attribute("d")
    heights = [float(part.split("H")[0]) for part in path.split("V")[1:]]
    assert heights == sorted(heights)  # down the picture
    best = browser.find_element("css selector", "#pareto circle.dot.on")
    assert best.get_attribute("style") == "--t: 100%;"


def test_the_front_is_what_no_other_beats():
    rows = make_rows()
    ranked = report.best(rows)
    front = report.pareto(ranked)
    pairs = [(row["file_bytes"], row["validation_accuracy"]) for row in ranked]
    beaten = [any(s <= size and a > value for s, a in pairs) for size, value in pairs]
    expected = [row["member"] for row, lost in zip(ranked, beaten, strict=True) if not lost]
    assert sorted(row["member"] for row in front) == sorted(expected)


def test_a_sweep_where_all_failed_still_has_a_page(browser, tmp_path):
    rows = [make_rows(5)[3]]
    assert report.write_report(tmp_path, AXES, rows) == [tmp_path / "report.html"]
    browser.get((tmp_path / "report.html").as_uri())
    assert browser.get_log("browser") == []
    assert "1 members: 0 done, 0 stopped early, 1 failed" in browser.page_source


def test_values_cannot_end_the_script():
    text = report.page_text(AXES, make_rows())
    assert text.count("</script>") == 1
    assert "NaN" not in text.split("const SHOWN")[0]


@pytest.mark.parametrize("sizes", [[9], [5, 5], [1000, 1100, 10**6], [10, 10**3, 10**5, 10**7]])
def test_clusters_hold_all_values(sizes):
    found = report.clusters(sizes)
    assert len(found) == {1: 1, 2: 1, 3: 2, 4: 4}[len(sizes)]
    assert all(any(low <= size <= high for low, high in found) for size in sizes)


@pytest.mark.parametrize("make", [make_rows, clustered_rows, lambda: make_rows(1)])
def test_pictures_are_written(tmp_path, make):
    written = report.write_report(tmp_path, AXES, make())
    assert [path.name for path in written] == [
        "report.html",
        "pareto.png",
        "coordinates.png",
        "curves.png",
    ]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in written[1:])


@pytest.mark.parametrize("draw", report.CHARTS.values())
def test_nothing_in_the_pictures_is_written_over_something(draw):
    figure_module = pytest.importorskip("matplotlib.figure")
    agg = pytest.importorskip("matplotlib.backends.backend_agg")
    figure = figure_module.Figure(figsize=(9, 4.5), layout="constrained")
    canvas = agg.FigureCanvasAgg(figure)
    draw(figure, AXES, report.best(clustered_rows()), "validation_accuracy")
    canvas.draw()
    texts = [text for plot in figure.axes for text in plot.texts]
    for axis in (axis for plot in figure.axes for axis in (plot.xaxis, plot.yaxis)):
        low, high = sorted(axis.get_view_interval())
        texts += [t.label1 for t in axis.get_major_ticks() if low <= t.get_loc() <= high]
    boxes = [text.get_window_extent() for text in texts if text.get_visible()]
    assert len(boxes) > 4
    assert not [1 for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]
    assert all(b.x0 >= 0 and b.x1 <= figure.bbox.x1 for b in boxes)


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(),
        TrainConfig(hidden=(), method="dense", noise=0.1 + 0.2, flip=True),
        TrainConfig(data="a b.npz", method="seeded", in_sketch=7, quantization_aware=True, bits=4),
        dataclasses.replace(TrainConfig(), learning_rate=1e-05, hidden=(3, 5), patience=2),
    ],
)
@pytest.mark.slow
def test_the_command_gives_the_config_back(config):
    words = shlex.split(configs.command_line(config))
    arguments = _main.build_parser()[0].parse_args([*words[1:], "--out", "x"])
    assert build_config(given_options(arguments)) == config
