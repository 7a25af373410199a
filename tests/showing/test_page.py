"""The page in a real browser: what is on the screen, in light and in dark, and who can use it."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import numpy
import pytest
from PIL import Image
from showing_hosts import images, scaled

import attn_surgery
from attn_surgery import Gallery
from attn_surgery.showing.colours import over_gates
from attn_surgery.showing.page import page

pytest.importorskip("pytorch_grad_cam")

BROWSER = next(
    filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None
)
in_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")
LIGHT, DARK = "light", "dark"
SIDE = 128

PROBE = """<script>
addEventListener("load", () => {
  const all = (query) => [...document.querySelectorAll(query)];
  const told = {
    pictures: [...document.images].map((i) => {
      const place = i.getBoundingClientRect();
      return {alt: i.alt, width: i.naturalWidth, box: [place.left, place.top, place.right,
        place.bottom].map(Math.round)};
    }),
    loaded: performance.getEntriesByType("resource").map((r) => r.name)
      .filter((name) => !name.startsWith("data:")),
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    stops: all("a[href], summary, [tabindex='0']").map((each) => {
      each.focus({preventScroll: true});
      return document.activeElement === each && getComputedStyle(each).outlineStyle;
    }),
    headings: all("h1, h2, h3").map((each) => Number(each.tagName[1])),
    unnamed: all("[role=region], [role=img], nav, section, article").filter((each) =>
      !each.getAttribute("aria-label")
      && !document.getElementById(each.getAttribute("aria-labelledby"))?.textContent).length,
    inks: all("p, li, a, th, td, caption, figcaption, summary, h1, h2, h3")
      .map((each) => getComputedStyle(each).color),
    ground: getComputedStyle(document.body).backgroundColor,
  };
  document.activeElement.blur();
  const place = document.body.appendChild(document.createElement("pre"));
  place.id = "told";
  place.hidden = true;
  place.textContent = JSON.stringify(told);
});
</script>"""


@pytest.fixture(scope="module")
def gallery() -> Gallery:
    model = scaled(1.0)
    gains = attn_surgery.inserted(model)["blocks.1.attn"].get_parameter("scale")
    gains.data.fill_(1.25)
    return attn_surgery.show(
        model,
        {"a <b>": images(1, SIDE)[0], "c": images(2, SIDE)[1]},
        labels=["x", "y"],
        name="<net>",
    )


Seen = Callable[..., tuple[dict[str, Any], numpy.ndarray]]


@pytest.fixture(scope="module")
def seen(gallery: Gallery, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Return what a browser makes of the page: what a probe tells, and the screenshot."""
    folder = tmp_path_factory.mktemp("page")
    probed = folder / "page.html"
    gallery.save(probed)
    probed.write_text(probed.read_text().replace("</body>", f"{PROBE}</body>"))

    def browse(*words: str) -> str:
        assert BROWSER is not None
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        own = f"--user-data-dir={folder / 'profile'}"
        offline = "--host-resolver-rules=MAP * ~NOTFOUND"
        run = [BROWSER, *flags, own, offline, *words]
        return subprocess.run(run, capture_output=True, text=True, timeout=120, check=True).stdout

    def look(theme: str, width: int = 1000) -> tuple[dict[str, Any], numpy.ndarray]:
        size = f"--window-size={width},2600"
        scheme = f"--blink-settings=preferredColorScheme={[DARK, LIGHT].index(theme)}"
        shot = folder / f"{theme}{width}.png"
        dom = browse(size, scheme, f"--screenshot={shot}", "--dump-dom", probed.as_uri())
        (told,) = re.findall(r'<pre id="told" hidden="">(.*?)</pre>', dom, re.DOTALL)
        with Image.open(shot) as image:
            return json.loads(html.unescape(told)), numpy.asarray(image.convert("RGB"))

    return look


def luminance(colour: Any) -> float:
    parts = numpy.asarray(colour) / 255
    linear = numpy.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: Any, other: Any) -> float:
    """Return the ratio of WCAG 2.2."""
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


def rgb(text: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", text)[:3]]


@in_browser
@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_what_is_on_the_screen(seen: Seen, gallery: Gallery, theme: str) -> None:
    told, screen = seen(theme)
    ground = screen[2, 2]
    assert (ground == rgb(told["ground"])).all()
    assert luminance(ground) == 1 if theme == LIGHT else luminance(ground) < 0.02
    found = {each["alt"]: each["box"] for each in told["pictures"]}
    for shown, number in ((gallery.images[0], 0), (gallery.images[1], 1)):
        assert shown.picture is not None
        for site in gallery.sites:
            (alt,) = [
                a
                for a in found
                if a.startswith(f"Gates of the 64x64 positions of {site.title} over {shown.name}:")
            ]
            left, top, right, bottom = found[alt]
            position = site.gates[number].position
            assert position is not None
            expected = over_gates(shown.picture, position)
            on_screen = screen[top:bottom, left:right].astype(int)
            assert numpy.abs(on_screen - expected).max() <= 1
            is_grey = (on_screen == on_screen[..., :1]).all()
            assert is_grey == (site.block == "blocks.0")  # that one is the identity
    left, top, right, bottom = found["a <b>, what both models see"]
    assert screen[top:bottom, left:right].std(axis=(0, 1)).min() > 20  # the image, not a box
    # what is written is there: ink where the first heading is
    ink = screen[:80, :600].reshape(-1, 3)
    assert max(contrast(each, ground) for each in numpy.unique(ink, axis=0)) > 10
    inks = {tuple(rgb(each)) for each in told["inks"]}
    assert len(inks) >= 3
    assert all(contrast(each, ground) >= 4.5 for each in inks)


@in_browser
def test_who_can_use_it(seen: Seen) -> None:
    told, screen = seen(LIGHT, 500)
    assert told["loaded"] == []
    assert all(each["width"] > 0 and each["alt"] for each in told["pictures"])
    assert told["overflow"] == 0  # on a narrow screen tables scroll, the page does not
    assert screen.shape[1] == 500
    assert len(told["stops"]) >= 12
    assert set(told["stops"]) <= {"solid", "auto"}
    assert told["headings"][0] == 1
    assert told["headings"].count(1) == 1
    assert max(b - a for a, b in zip(told["headings"], told["headings"][1:], strict=False)) == 1
    assert told["unnamed"] == 0


def test_the_page_is_one_file_without_a_script(gallery: Gallery) -> None:
    text = page(gallery).decode()
    assert not re.findall(r"<(?:script|link|iframe)\b|\son\w+=|@import", text)
    assert not re.findall(r"(?:src|href)=\"(?!data:image/png;base64,|#)", text)
    assert "https:" not in text
    assert "http:" not in text
    assert "What attention does in &lt;net&gt;" in text
    assert "a &lt;b&gt;" in text
    assert "<b>" not in text


def test_every_picture_has_its_numbers_in_words(gallery: Gallery) -> None:
    text = page(gallery).decode()
    alts = re.findall(r'<img[^>]*alt="([^"]*)"', text)
    assert len(alts) == text.count("<img") == 2 + 2 * (3 + 2)
    assert sum("1.000 to 1.000; change 0.00 %" in alt for alt in alts) == 2
    assert sum("1.250 to 1.250; change 25.00 %" in alt for alt in alts) == 2
    assert "8 channels: median 1.250, 5 % to 95 % 1.250 to 1.250; 8 above 1.05" in text
    assert '<th scope="row">blocks.1</th>' in text
    assert text.count('<th scope="col">x</th><th scope="col">y</th>') == 1  # gates by class
    # channels at 1 have no colour in their histogram, the others have
    kinds = re.findall(r'<rect class="(\w+)"', text)
    assert list(dict.fromkeys(kinds)) == ["near", "above"]
    assert kinds.count("near") == 1
