"""A real browser for the tests of pages, and what a page said, asked for and popped up in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from playwright.sync_api import Browser, Dialog, Page

# The texts on a page that stay below WCAG AA, 4.5 to 1, each with its ratio.
LOW_CONTRAST = """() => {
  const linear = x => (x /= 255) <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * linear(r) + .7152 * linear(g) + .0722 * linear(b);
  const parse = s => s.match(/[\\d.]+/g).map(Number);
  const back = e => {
    for (; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > .5) return c;
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const e of document.querySelectorAll('body *')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    if (e.closest('svg, script, noscript')) continue;
    const a = light(parse(getComputedStyle(e).color)), b = light(back(e));
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < 4.5) low.push(e.textContent.trim().slice(0, 30) + ' ' + ratio.toFixed(2));
  }
  return low;
}"""


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
