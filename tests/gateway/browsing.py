"""Headless Chromium for the stories of the console: Debian's, driven by playwright in a thread."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
AXE = Path(__file__).resolve().parent.parent / "vendor" / "axe-core" / "axe.min.js"

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium: `apt install chromium`, or as root `make test` does it"
)


class Browser:
    """A browser that somebody of the house uses, in a thread: what it calls of the house goes to trio."""

    def __init__(self, house, browser, **options):
        self.house = house
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.page = self.context.new_page()
        self.page.set_default_timeout(15_000)
        self.troubles: list[str] = []
        self.page.on("pageerror", lambda error: self.troubles.append(f"error: {error}"))
        self.page.on("console", self._said)
        self.page.on("dialog", self._dialog)

    def _said(self, message):
        # A page that is not there is told by its status; the browser's line about it is no trouble.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.troubles.append(f"console: {message.text}")

    def _dialog(self, dialog):
        self.troubles.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def go(self, path: str):
        return self.page.goto(self.house.console + path)

    def log_in(self, name: str = "alice"):
        self.go("/login")
        self.page.get_by_label("Key of scope").fill(self.house.keys[name])
        self.page.get_by_role("button", name="Log in").click()
        self.page.get_by_role("heading", name="Overview").wait_for(state="attached")

    def do(self, function: Callable, *args, **fields):
        """Something of the house, in its trio program."""
        return trio.from_thread.run(partial(function, *args, **fields))

    def violations(self) -> list[str]:
        """What axe finds on the page, a line each."""
        self.page.evaluate(AXE.read_text())
        found = self.page.evaluate(
            "() => axe.run(document, {resultTypes: ['violations']}).then(found => found.violations)"
        )
        return [f"{one['id']}: {one['nodes'][0]['html'][:200]}" for one in found]


@contextmanager
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


async def browse(house, story: Callable[[Browser], None], **options):
    """Run a story of one browser; nothing may go wrong in its page."""

    def run():
        with chromium() as browser:
            visitor = Browser(house, browser, **options)
            story(visitor)
            assert visitor.troubles == []

    await trio.to_thread.run_sync(run)
