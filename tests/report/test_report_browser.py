"""The page in a real browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
from hostile_texts import INJECTIONS, hostile

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
            attribution=generator.normal(size=(16, 16)),
            loss=float(i % 2),
            p_value=P_VALUES[i % len(P_VALUES)],
            p_value_without_acceptance=None if P_VALUES[i % len(P_VALUES)] is None else 0.1,
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
    return page.locator("#cards > .card:visible .title").all_text_contents()


def wait_for_focus(page, name: str) -> None:
    """Until the sample's card or row has the focus: browsers announce a closed dialog a moment later."""
    page.wait_for_function(
        """(name) => {
          const at = document.activeElement;
          return (at.closest(".card")?.querySelector(".title") ?? at).textContent === name;
        }""",
        arg=name,
        timeout=10_000,
    )


def choose(page, name: str, value: str) -> None:
    if name == "find":
        page.fill("input[name=find]", value)
    elif name == "group":
        page.select_option("select[name=group]", label=value)
    else:
        page.select_option(f"select[name={name}]", value)


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
        ("adjusted", ["s4", "s0", "s5", "s2", "s1", "s3"]),
        ("change", ["s4", "s0", "s5", "s2", "s1", "s3"]),
        ("-loss", ["s1", "s3", "s5", "s0", "s2", "s4"]),
        ("-name", ["s5", "s4", "s3", "s2", "s1", "s0"]),
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
        ({"find": " S4 "}, ["s4"]),
        ({"p": "adjusted"}, ["s0", "s4"]),
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
            choose(page, name, value)
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
        page.locator("#cards > .card:nth-child(5) button").focus()
        page.keyboard.press("Enter")
        assert page.inner_text("#opened-title") == "s4: selected"
        text = page.inner_text("#opened-body")
        assert "1.0e-12" in text
        assert "row 4" in text
        assert page.locator("#opened img.image").get_attribute("alt") == page.locator(
            "#cards > .card:nth-child(5) img.image"
        ).get_attribute("alt")
        page.keyboard.press("Escape")
        page.locator("#opened").wait_for(state="hidden")
        wait_for_focus(page, "s4")


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
        assert page.locator("#cards .card").count() == 6
        assert not page.locator("#controls").is_visible()


def test_the_table_is_sorted_by_its_heads_and_says_so(browser, tmp_path):
    with opened(browser, tmp_path, make_report()) as page:
        page.select_option("select[name=view]", "table")
        assert not page.locator("#cards").is_visible()
        head = page.locator("th[data-key=score]")
        rows = page.locator("#rows tbody tr th")
        assert head.get_attribute("aria-sort") == "none"
        assert rows.all_text_contents() == ["s0", "s1", "s2", "s3", "s4", "s5"]
        head.locator("button").focus()
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == "ascending"
        assert rows.all_text_contents() == ["s1", "s5", "s4", "s0", "s2", "s3"]
        page.keyboard.press("Enter")
        assert head.get_attribute("aria-sort") == "descending"
        assert rows.all_text_contents() == ["s2", "s0", "s4", "s1", "s5", "s3"]
        assert page.input_value("select[name=sort]") == "-score"
        page.locator("th[data-key=p] button").click()
        assert head.get_attribute("aria-sort") == "none"
        cells = page.locator("#rows tbody tr").first.locator("th, td").all_text_contents()
        assert cells == ["s4", "even", "selected", "0.300", "0", "1.0e-12", "4.0e-12", "0.100", "-0.100"]


def test_a_row_of_the_table_opens_and_gets_the_focus_back(browser, tmp_path):
    with opened(browser, tmp_path, make_report()) as page:
        page.select_option("select[name=view]", "table")
        page.select_option("select[name=decision]", "rejected")
        page.locator("#rows tbody button").first.press("Enter")
        assert page.inner_text("#opened-title") == "s2: rejected"
        assert page.inner_text("#place") == "1 of 2"
        page.keyboard.press("Escape")
        wait_for_focus(page, "s2")


def test_opened_samples_are_left_through_with_the_arrows(browser, tmp_path):
    with opened(browser, tmp_path, make_report()) as page:
        page.select_option("select[name=sort]", "score")
        page.locator("#cards .open").first.click()
        title = page.locator("#opened-title")
        assert title.inner_text() == "s1: selected"
        assert page.locator("[data-go='-1']").is_disabled()
        page.keyboard.press("ArrowLeft")
        assert title.inner_text() == "s1: selected"
        page.keyboard.press("ArrowRight")
        assert title.inner_text() == "s5: selected"
        for _ in range(9):
            page.keyboard.press("ArrowRight")
        assert title.inner_text() == "s3: rejected"
        assert page.locator("[data-go='1']").is_disabled()
        page.click("[data-go=close]")
        page.locator("#opened").wait_for(state="hidden")
        wait_for_focus(page, "s3")


def test_attributions_are_shown_on_request_and_beside_an_opened_image(browser, tmp_path):
    with opened(browser, tmp_path, make_report()) as page:
        heat = page.locator("#cards img.attribution").first
        assert not heat.is_visible()
        page.check("input[name=attribution]")
        assert heat.is_visible()
        page.uncheck("input[name=attribution]")
        page.locator("#cards .open").first.click()
        assert page.locator("#opened img.image").is_visible()
        assert page.locator("#opened img.attribution").is_visible()
        page.wait_for_function("document.querySelector('#opened img.attribution').naturalWidth === 16")


def test_every_control_and_picture_has_a_name(browser, tmp_path):
    with opened(browser, tmp_path, make_report()) as page:
        unnamed = page.evaluate(
            """() => [...document.querySelectorAll("button, select, input, img, [role=img], dialog, table")]
              .filter((e) => !(e.alt || e.ariaLabel || e.textContent.trim() || e.labels?.length
                || e.getAttribute("aria-labelledby") || e.caption))
              .map((e) => e.outerHTML)"""
        )
        assert unnamed == []
        order = page.evaluate(
            """() => [...document.querySelectorAll("h1, h2, h3")].filter((e) => e.checkVisibility())
              .map((e) => Number(e.tagName[1]))"""
        )
        assert order[0] == 1
        assert all(b - a <= 1 for a, b in pairwise(order))


@pytest.mark.parametrize("text", INJECTIONS)
def test_no_text_runs_or_changes_the_page(browser, tmp_path, text):
    with opened(browser, tmp_path, hostile(text)) as page:
        assert page.evaluate("window.hit") is None
        assert page.locator("#cards .title").all_inner_texts() == [text, text]
        page.locator("#cards .open").first.click()
        assert page.inner_text("#opened-title") == f"{text}: selected"
        assert text in page.inner_text("#opened-body")
        page.keyboard.press("Escape")
        page.select_option("select[name=group]", label=f"{text}1")
        page.select_option("select[name=view]", "table")
        assert page.locator("#rows tbody tr").count() == 1
        assert page.evaluate("window.hit") is None


def test_a_script_that_slips_in_is_not_run(browser, tmp_path):
    path = write_report(tmp_path, make_report())
    text = path.read_text(encoding="utf-8")
    planted = text.replace(
        "<footer>", "<script>window.hit = 1</script><img src='data:,' onerror='window.hit=1'>", 1
    )
    assert planted != text
    path.write_text(planted, encoding="utf-8")
    page = browser.new_page()
    page.goto(path.as_uri())
    assert page.evaluate("window.hit") is None
    page.close()


@pytest.mark.parametrize(
    "report",
    [
        Report("empty"),
        Report("curve", risk_coverage=([0.5, 1.0], [0.1, 0.2])),
        Report("plain", [Sample(None, float("nan"), False, name="n"), Sample(None, float("inf"), True)]),
    ],
    ids=lambda report: report.title,
)
def test_sparse_reports_work(browser, tmp_path, report):
    with opened(browser, tmp_path, report) as page:
        assert page.inner_text("h1") == report.title
        assert page.locator("#cards .card").count() == len(report.samples)
        if report.samples:
            page.select_option("select[name=sort]", "-score")
            page.locator("#cards .open").first.click()
            assert page.locator("#opened .pictures img").count() == 0


def test_paper_shows_every_sample_in_black_on_white(browser, tmp_path):
    with opened(browser, tmp_path, make_report(400), color_scheme="dark") as page:
        page.emulate_media(media="print")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert page.locator("#cards .card").count() == 300
        assert page.inner_text("#print-note") == "The first 300 of 400; filter to print others."
        assert not page.locator("#controls").is_visible()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        page.evaluate("dispatchEvent(new Event('afterprint'))")
        assert not page.locator("#print-note").is_visible()


def test_two_thousand_samples_are_drawn_as_they_are_looked_at(browser, tmp_path):
    path = write_report(tmp_path, make_report(2000))
    assert path.stat().st_size < 24e6
    page = browser.new_page()  # without the guard, which would hear of every one of 2,000 images
    page.goto(path.as_uri())
    count = "document.querySelectorAll('*').length"
    assert page.evaluate(count) < 5_000
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
        assert page.evaluate(count) < 5_000
    assert page.inner_text("#shown") == "1334 of 2000 shown"
    before = page.locator("#cards .card").count()
    page.locator("#more button").evaluate("(button) => button.click()")
    assert page.locator("#cards .card").count() >= before + 60
    page.select_option("select[name=view]", "table")
    assert page.evaluate(count) < 5_000
    page.close()
