"""Pictures of the page for the documentation: ``python docs/screenshots.py URL [FOLDER]``, with a demo running there.

Needs playwright (in the extra ``dev``) and a Chromium on the PATH. One click is made first, so that the list has moved.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / "pictures"
WIDTHS = {"wide": (1280, 900), "phone": (390, 844)}
SIZES = {f"page-{name}-{theme}": (*size, theme) for name, size in WIDTHS.items() for theme in ("light", "dark")}


def main(url: str, folder: Path = FOLDER) -> int:
    """Take them all; 0."""
    from playwright.sync_api import sync_playwright

    folder.mkdir(exist_ok=True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, (width, height, theme) in SIZES.items():
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=theme)
            page.goto(url)
            page.click("#recommended li:nth-child(3) button")
            page.get_by_text("has learned it").wait_for(timeout=90_000)
            page.mouse.move(0, 0)
            page.wait_for_timeout(1500)
            page.screenshot(path=folder / f"{name}.png", full_page=True)
            print(f"{name}.png: {(folder / f'{name}.png').stat().st_size / 1000:.0f} kB")
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(Path, sys.argv[2:3])))
