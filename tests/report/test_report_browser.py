"""The page in a real browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from selkit.report import Report, Sample, write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None, reason="no Chromium on this machine (Debian: apt-get install chromium)"
    ),
]

SCORES = [0.5, 0.1, 0.9, float("nan"), 0.3, 0.1]
P_VALUES = [0.01, None, 0.2, None, 1e-12, 0.04]


def make_report(count: int = len(SCORES)) -> Report:
    generator = np.random.default_rng(0)
    samples = [
        Sample(
            generator.normal(size=(16, 16)),
            score=SCORES[i % len(SCORES)],
            selected=SCORES[i % len(SCORES)] <= 0.5,
            name=f"s{i}",
            group="even" if i % 2 == 0 else "odd",
            roi=generator.random((16, 16)) > 0.7,
            target=np.eye(16),
            p_value=P_VALUES[i % len(P_VALUES)],
            naive_p_value=None if P_VALUES[i % len(P_VALUES)] is None else 0.0,
            details={"place": f"row {i}"},
        )
        for i in range(count)
    ]
    return Report(
        "Browser",
        samples,
        threshold=0.5,
        summary=["text " * 40],
        metrics={"full/Dice": 0.5, "selected/Dice": 0.6, "rejected/Dice": 0.1},
        risk_coverage=(np.linspace(0.1, 1, 10), np.linspace(0, 0.5, 10)),
    )


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser, path, report: Report, **options) -> Iterator[object]:
    """A page that fails the test on any message in its console, any error, and any request."""
    trouble: list[str] = []
    context = browser.new_context(**options)
    page = context.new_page()
    page.on("console", lambda message: trouble.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
    page.on("request", lambda r: r.url.startswith(("file:", "data:")) or trouble.append(f"request: {r.url}"))
    page.goto(write_report(path, report).as_uri())
    yield page
    context.close()
    assert not trouble


def names(page) -> list[str]:
    """The cards that are shown, in order."""
    return page.locator("#cards > li:visible .title").all_text_contents()


def test_the_guard_sees_an_error(browser, tmp_path):
    with (
        pytest.raises(AssertionError, match="planted"),
        opened(browser, tmp_path, make_report()) as page,
    ):
        page.evaluate("console.error('planted')")


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("index", ["s0", "s1", "s2", "s3", "s4", "s5"]),
        ("score", ["s1", "s5", "s4", "s0", "s2", "s3"]),
        ("-score", ["s2", "s0", "s4", "s1", "s5", "s3"]),
        ("p", ["s4", "s0", "s5", "s2", "s1", "s3"]),
        ("-p", ["s2", "s5", "s0", "s4", "s1", "s3"]),
    ],
)
def test_sorting_puts_what_has_no_value_last_and_keeps_ties(browser, tmp_path, key, expected):
    with opened(browser, tmp_path, make_report()) as page:
        page.select_option("select[name=sort]", key)
        assert names(page) == expected
        page.select_option("select[name=sort]", "index")
        assert names(page) == sorted(expected)


@pytest.mark.parametrize(
    ("choices", "expected"),
    [
        ({"decision": "selected"}, ["s0", "s1", "s4", "s5"]),
        ({"decision": "rejected"}, ["s2", "s3"]),
        ({"group": "odd"}, ["s1", "s3", "s5"]),
        ({"p": "small"}, ["s0", "s4", "s5"]),
        ({"p": "large"}, ["s2"]),
        ({"p": "none"}, ["s1", "s3"]),
        ({"decision": "selected", "group": "even", "p": "small", "sort": "p"}, ["s4", "s0"]),
        ({"decision": "rejected", "p": "small"}, []),
    ],
)
def test_filtering(browser, tmp_path, choices, expected):
    with opened(browser, tmp_path, make_report()) as page:
        for name, value in choices.items():
            page.select_option(f"select[name={name}]", value)
        assert names(page) == expected
        assert page.inner_text("#shown") == f"{len(expected)} of 6 shown"
        page.click("button[type=reset]")
        page.get_by_text("6 of 6 shown").wait_for()
        assert names(page) == ["s0", "s1", "s2", "s3", "s4", "s5"]


def test_outlines_can_be_hidden(browser, tmp_path):
    with opened(browser, tmp_path, make_report()) as page:
        roi, target = page.locator("#cards path.roi").first, page.locator("#cards path.target").first
        assert roi.is_visible()
        page.uncheck("input[name=roi]")
        assert not roi.is_visible()
        assert target.is_visible()


def test_a_sample_opens_and_closes_with_the_keyboard(browser, tmp_path):
    with opened(browser, tmp_path, make_report()) as page:
        page.locator("#cards > li:nth-child(5) button").focus()
        page.keyboard.press("Enter")
        assert page.inner_text("#opened-title") == "s4: selected"
        text = page.inner_text("#opened-body")
        assert "1.0e-12" in text
        assert "row 4" in text
        assert page.locator("#opened img").get_attribute("alt") == page.locator(
            "#cards > li:nth-child(5) img"
        ).get_attribute("alt")
        page.keyboard.press("Escape")
        assert not page.locator("#opened").is_visible()
        assert (
            page.evaluate("document.activeElement.closest('li').querySelector('.title').textContent") == "s4"
        )


@pytest.mark.parametrize("width", [360, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_hangs_over_the_side(browser, tmp_path, width, scheme):
    options = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    with opened(browser, tmp_path, make_report(), **options) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 28)")


def test_without_scripts_everything_is_there(browser, tmp_path):
    with opened(browser, tmp_path, make_report(), java_script_enabled=False) as page:
        assert page.locator("#cards > li").count() == 6
        assert not page.locator("#controls").is_visible()


def test_two_thousand_samples_filter_and_sort(browser, tmp_path):
    page = browser.new_page()  # without the guard, which would hear of every one of 2,000 images
    page.goto(write_report(tmp_path, make_report(2000)).as_uri())
    for key in ("-score", "p", "index", "score", "-p"):
        page.evaluate(
            """(key) => {
              const form = document.getElementById("controls");
              form.elements.decision.value = "selected";
              form.elements.sort.value = key;
              form.dispatchEvent(new Event("change", {bubbles: true}));
            }""",
            key,
        )
    assert page.inner_text("#shown") == "1334 of 2000 shown"
    page.close()
