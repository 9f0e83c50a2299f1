"""A real browser for the tests of pages, and what a page said, asked for and popped up in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, Dialog, Page


@dataclass(slots=True)
class Noise:
    """What a page said, asked for and popped up while it was used."""

    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    popped: list[str] = field(default_factory=list)


def open_page(browser: Browser, file: Path, width: int = 1280) -> tuple[Page, Noise]:
    page, noise = browser.new_page(viewport={"width": width, "height": 900}), Noise()

    def close_dialog(dialog: Dialog) -> None:
        noise.popped.append(dialog.message)
        dialog.dismiss()

    page.on("console", lambda message: noise.said.append(message.text))
    page.on("pageerror", lambda error: noise.said.append(str(error)))
    page.on("request", lambda request: noise.asked.append(request.url))
    page.on("dialog", close_dialog)
    page.goto(file.as_uri())
    return page, noise
