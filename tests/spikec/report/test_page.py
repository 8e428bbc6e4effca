"""The page: one file that asks the network for nothing, well formed, readable in both modes, in a real browser too."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from html import unescape
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path
from xml.etree import ElementTree

import pytest

from compiler.h2learn.compile import compile_inference
from hwmodel.config import load_config
from hwmodel.program import Layer, Program
from spikec.models import load_model
from spikec.report.analysis import analyse
from spikec.report.page import render_page
from spikec.report.whatif import Masks, what_if
from tests.hwmodel.training_programs import PROGRAMS

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
VOID = {"meta", "link", "br", "img"}
LEAST_CONTRAST = 4.5  # of normal text, WCAG 2.1 AA, 1.4.3
MEASURE = """<script>
window.addEventListener("load", () => {
  const size = (node) => { const box = node.getBoundingClientRect(); return [box.width, box.height]; };
  document.querySelectorAll("details").forEach((node) => { node.open = true; });
  const found = {
    figures: [...document.querySelectorAll("figure svg")].map(size),
    tables: [...document.querySelectorAll("table")].map(size),
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  };
  const place = document.createElement("pre");
  place.id = "measured";
  place.textContent = JSON.stringify(found);
  document.body.append(place);
});
</script>"""


def page_of(program: Program, masks: Masks | None = None, densities: str = "") -> str:
    known = masks or Masks(None)
    analysis = analyse(program, known.tiles(program.config), known.kept)
    return render_page(analysis, what_if(analysis, known), densities)


@cache
def training_page() -> str:
    return page_of(PROGRAMS[0](), densities="dense")


@cache
def inference_page() -> str:
    graph = load_model("zoo:digits-conv").graph
    return page_of(compile_inference(graph, load_config("h2learn")).program)


class Tags(HTMLParser):
    """Counts elements, and makes sure that each is closed in its turn."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def end(self) -> dict[str, int]:
        """What was counted, when all is closed."""
        assert self._open == []
        return self.counts


def pages() -> Mapping[str, str]:
    return {"training": training_page(), "inference": inference_page()}


@pytest.mark.parametrize("kind", ["training", "inference"])
def test_the_page_is_one_well_formed_file(kind: str) -> None:
    text = pages()[kind]
    tags = Tags()
    tags.feed(text)
    counts = tags.end()
    assert (counts["html"], counts["h1"], counts["svg"]) == (1, 1, counts["figure"])
    assert "script" not in counts
    assert "img" not in counts
    assert not re.search(r"""(?:src|href)=["'](?!data:)|url\(|@import|https?://""", text)
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        root = ElementTree.fromstring(svg)
        width, height = (float(size) for size in root.attrib["viewBox"].split()[2:])
        for node in root.iter("rect"):
            assert 0 <= float(node.attrib["x"]) <= float(node.attrib["x"]) + float(node.attrib["width"]) <= width + 0.1
            assert 0 <= float(node.attrib["y"]) <= height
        for node in root.iter("circle"):
            assert 0 <= float(node.attrib["cx"]) <= width
            assert 0 <= float(node.attrib["cy"]) <= height


def test_every_layer_and_assumption_is_on_the_page() -> None:
    program, text = PROGRAMS[0](), unescape(training_page())
    for layer in program.layers:
        assert f'<td class="text">{layer.name}</td>' in text
    for field in ("m_write", "spike_halo", "gradient_halo", "update_memory", "dma_channels", "encoding", "batch_group"):
        assert f'<td class="text">{field}</td>' in text
    assert "Horowitz, ISSCC 2014" in text
    assert "What one change would buy" in text


def renamed(program: Program, name: str) -> Program:
    layers: tuple[Layer, ...] = tuple(replace(layer, name=f"{name}.{layer.name}") for layer in program.layers)
    return replace(program, name=name, layers=layers)


def test_names_are_text() -> None:
    text = page_of(renamed(PROGRAMS[0](), "<script>alert('&')</script>"))
    tags = Tags()
    tags.feed(text)
    assert "script" not in tags.end()
    assert "&lt;script&gt;" in text


def colours(block: str) -> dict[str, str]:
    return dict(re.findall(r"--([a-z0-9]+): (#[0-9a-f]{6})", block))


def luminance(colour: str) -> float:
    """Relative luminance of sRGB, WCAG 2.1."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("dark", [False, True])
def test_text_has_contrast(dark: bool) -> None:
    style = (resources.files("spikec.report") / "page.html.jinja").read_text(encoding="utf-8")
    light_block, dark_block = style.split("prefers-color-scheme: dark", 1)
    found = colours(dark_block if dark else light_block)
    for text in ("ink", "muted"):
        for ground in ("page", "card"):
            low, high = sorted((luminance(found[text]), luminance(found[ground])))
            assert (high + 0.05) / (low + 0.05) >= LEAST_CONTRAST, (text, ground)
    assert colours(light_block).keys() == colours(dark_block).keys()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["training", "inference"])
@pytest.mark.parametrize("width", [500, 1280])
def test_a_browser_shows_every_figure(kind: str, width: int, tmp_path: Path) -> None:
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is on PATH")
    text = pages()[kind]
    path = tmp_path / "page.html"
    path.write_text(text.replace("</body>", f"{MEASURE}</body>"), encoding="utf-8")
    options = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
    log = ("--enable-logging=stderr", "--v=0", f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900")
    done = subprocess.run(
        [browser, *options, *log, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert "CONSOLE" not in done.stderr
    measured = re.search(r'<pre id="measured">(.*?)</pre>', done.stdout)
    assert measured is not None
    sizes = json.loads(unescape(measured.group(1)))
    assert len(sizes["figures"]) == text.count("<figure>")
    assert len(sizes["tables"]) == text.count("<table>")
    for shown_width, shown_height in (*sizes["figures"], *sizes["tables"]):
        assert shown_width >= 300 or shown_width >= width / 2
        assert shown_height > 20
    assert sizes["overflow"] <= 0
