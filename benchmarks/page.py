"""How quick a page of many units is in a real browser: ``python benchmarks/page.py``.

Needs playwright (``pip install playwright``) and Debian's chromium. The page has as many units as asked for, named from
a thousand concepts, with random activations on 500 images; it is opened from disk, in a fresh profile each time.

- the first paint (the browser's first-contentful-paint), and until the frame after the cards were made;
- a search: from the key press to the second frame after it, when the new cards have been painted (their pictures follow), which the
  browser may delay while it decodes the pictures of before; and what the page itself does for it;
- sorting by score, the same way; a unit's page, from the click until it stands there.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from neuroprobe import Activations, Images, LabelReport

N_IMAGES, N_CONCEPTS, N_LAYERS = 500, 1000, 20
SEARCHES = ("concept 77", "c", "concept", "layer.3 concept 5", "9", "nothing like that", "")

PAINTS = """() => new Promise((resolve) => {
    const first = () => performance.getEntriesByName('first-contentful-paint')[0];
    const shown = () => performance.getEntriesByName('neuroprobe-shown')[0]; // set by the page, in the frame after its cards
    const look = () => (first() && shown() ? resolve([first().startTime, shown().startTime]) : setTimeout(look, 20));
    look();
})"""

SEARCH = """(text) => new Promise((resolve) => {
    const box = document.getElementById('search');
    const start = performance.now();
    box.value = text;
    box.dispatchEvent(new Event('input', { bubbles: true }));
    requestAnimationFrame(() => requestAnimationFrame(() => resolve(performance.now() - start)));
})"""

WORK = "() => performance.getEntriesByName('neuroprobe-search', 'measure').map((entry) => entry.duration)"

SORT = """(name) => new Promise((resolve) => {
    const box = document.querySelector('select[aria-label=Order]');
    const start = performance.now();
    box.value = name;
    box.dispatchEvent(new Event('change', { bubbles: true }));
    requestAnimationFrame(() => requestAnimationFrame(() => resolve(performance.now() - start)));
})"""

OPEN = """() => new Promise((resolve) => {
    const start = performance.now();
    new MutationObserver(() => document.querySelector('article.unit') && resolve(performance.now() - start))
        .observe(document.getElementById('content'), { childList: true, subtree: true });
    document.querySelector('.card a').click();
})"""


def main() -> None:
    """Write the page, open it several times, and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        write(Path(folder), arguments.units)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        found = [measured(browser, Path(folder)) for _ in range(arguments.repeats)]
        print(f"Chromium {browser.version}, {arguments.repeats} times, median (worst) in ms:")
        browser.close()
    for name in found[0]:
        values = [value for one in found for value in one[name]]
        print(f"  {name:28s} {statistics.median(values):7.0f} ({max(values):.0f})")


def write(folder: Path, n_units: int) -> None:
    """A page of random units."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (N_IMAGES, 6, 6, 3), dtype=np.uint8)
    images = Images([Image.fromarray(p).resize((128, 128), Image.Resampling.BICUBIC) for p in pixels])
    per_layer = -(-n_units // N_LAYERS)
    layers = [f"layer.{i // per_layer}" for i in range(n_units)]
    numbers = np.arange(n_units) % per_layer
    scores = np.sort(generator.uniform(0, 8, (n_units, 5)), axis=1)[:, ::-1]
    names = generator.integers(0, N_CONCEPTS, (n_units, 5))
    q = generator.uniform(0, 0.06, n_units)
    table = pd.DataFrame(
        {"layer": layers, "unit": numbers, "score": scores[:, 0], "q_value": q, "stability": generator.uniform(size=n_units)}
    )
    table["candidate"] = [f"concept {i}" for i in names[:, 0]]
    table["status"] = np.where(q <= 0.05, "named", "not significant")
    table["concept"] = table["candidate"].where(q <= 0.05, "")
    for rank in range(2, 6):
        table[f"concept_{rank}"], table[f"score_{rank}"] = [f"concept {i}" for i in names[:, rank - 1]], scores[:, rank - 1]
    arrays = {f"layer.{i}": generator.normal(size=(N_IMAGES, per_layer)).astype(np.float32) for i in range(N_LAYERS)}
    started = time.perf_counter()
    paths = LabelReport(table, {}).to_html(folder, images=images, activations=Activations(arrays, images.ids, {}))
    size = sum(path.stat().st_size for path in paths) / 1e6
    first = (folder / "data" / "units.js").stat().st_size / 1e6
    print(f"{n_units} units: {len(paths)} files, {size:.1f} MB, written in {time.perf_counter() - started:.1f} s; units.js {first:.2f} MB")


def measured(browser: Browser, folder: Path) -> dict[str, list[float]]:
    """Milliseconds in a fresh profile."""
    page: Page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.goto(f"{folder.as_uri()}/index.html")
    page.wait_for_selector(".card")
    first, shown = page.evaluate(PAINTS)
    found = {
        "first paint": [first],
        "cards painted": [shown],
        "search, to the second frame": [page.evaluate(SEARCH, text) for text in SEARCHES],
        "search, the page's own work": page.evaluate(WORK),
        "sort, to the second frame": [page.evaluate(SORT, name) for name in ("score", "concept", "layer")],
        "open a unit": [page.evaluate(OPEN)],
    }
    page.close()
    return found


if __name__ == "__main__":
    main()
