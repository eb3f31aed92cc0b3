"""`densify report`: one page about a dense network that needs nothing outside it."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from cli import DIGITS, SCENE, WEIGHTS, densify
from laws.onnx import Node, graph, integers
from PIL import Image
from small import Residual, images, seeded
from torch import nn

import densify as package
from densify.errors import UsageError
from densify.onnx.file import save_onnx
from densify.pictures import page
from densify.pictures.reporting import report

SECTIONS = ["Plan", "Verification", "Pictures", "Recipe"]
EMPTY = {"meta", "link", "img", "br", "hr", "input"}


class Reader(HTMLParser):
    """What is on a page: its elements balanced, its texts by section, its addresses."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.texts: dict[str, list[str]] = {"": []}
        self.section = ""
        self.feed(content)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            assert not name.startswith("on")  # no script in an attribute
            if name in ("src", "href", "srcset", "action", "data", "poster", "background"):
                self.addresses.append(value or "")
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.section = data
            self.texts[data] = []
        elif self.open and self.open[-1] != "style":
            self.texts[self.section].append(data)

    def text(self, section: str) -> str:
        return " ".join(" ".join(self.texts[section]).split())


def read(path: Path) -> Reader:
    """A page, its laws checked: nothing outside it, no script, all pictures whole."""
    content = path.read_text(encoding="utf-8")
    found = Reader(content)
    assert [name for name in found.texts if name] == SECTIONS
    assert not found.tags & {"script", "link", "iframe", "object", "embed"}
    style = re.findall(r"<style>(.*?)</style>", content, re.DOTALL)[0]
    assert "url(" not in style
    assert "@import" not in style
    for address in found.addresses:
        head, _, data = address.partition(",")
        assert head == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as picture:
            picture.load()
    assert "default-src 'none'" in content
    return found


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dense digit recogniser as a checkpoint."""
    path = tmp_path_factory.mktemp("dense") / "dense.pth"
    made = densify("convert", DIGITS, "--weights", WEIGHTS, "--start", "pool2", "-o", path, "-q", "--sample", SCENE)
    assert made.status == 0, made.stderr
    return path


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """An ONNX graph that no torch code is of."""
    nodes: list[Node] = [
        ("Conv", ["input", "stem"], ["a"], {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ("MaxPool", ["a"], ["pool"], {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("Conv", ["pool", "last"], ["output"], {}),
    ]
    weights = {"stem": integers(4, 3, 3, 3), "last": integers(6, 4, 3, 3, seed=1)}
    path = tmp_path / "net.onnx"
    save_onnx(graph(nodes, weights, ("N", 3, "H", "W")).graph, path)
    return path


def check_report(file: Path, out: Path, original: str, *more: str) -> None:
    """A report on a file holds everything that the command says."""
    made = densify("report", file, "--sample", SCENE, "--trust-code", "--sum", "--locate", "-o", out, "--json", *more)
    assert made.status == 0, made.stderr
    assert made.document["passed"]
    found = read(out)
    assert len(found.addresses) == 5 + 2  # panels and scales
    plan, verification, pictures, recipe = (found.text(section) for section in SECTIONS)
    assert "What changes" in plan
    assert "cost:" in plan
    for check in made.document["checks"]:
        assert check["law"] in verification
        assert check["runtime"] in verification
    assert SCENE in pictures
    assert "one scale for all maps" in pictures
    assert "Intersection over union" in pictures
    for words in made.document["pictures"][0]["words"]:
        assert words in pictures
    assert "asked for" in recipe
    assert "SHA-256" in recipe
    assert original in recipe
    assert f"PASSED: {len(made.document['checks'])} checks" in found.text("")


def test_a_report_on_a_checkpoint(dense: Path, tmp_path: Path) -> None:
    check_report(dense, tmp_path / "report.html", "digits.py:digit_net")


def test_a_report_on_an_onnx_file_of_a_torch_network(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\nINPUT_SIZE = (3, 33, 40)\n"
        "def net():\n    return nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 5, 3))\n"
    )
    file, reference = tmp_path / "dense.onnx", f"{tmp_path / 'net.py'}:net"
    made = densify("convert", reference, "--init", "random", "--output-stride", 1, "-o", file, "-q")
    assert made.status == 0, made.stderr
    check_report(file, tmp_path / "report.html", "net.py:net", "--model", reference)
    assert "onnxruntime, no optimisations" in read(tmp_path / "report.html").text("Verification")


def test_a_report_on_a_graph(net: Path, tmp_path: Path) -> None:
    file = tmp_path / "dense.onnx"
    made = densify("convert", net, "--input-size", "3,33,40", "--output-stride", 1, "-o", file, "-q")
    assert made.status == 0, made.stderr
    check_report(file, tmp_path / "report.html", "net.onnx")


def test_names_are_escaped(tmp_path: Path) -> None:
    sample, out = tmp_path / '<b>&amp; "it\'s".npy', tmp_path / "report.html"
    x = images(33, 40, batch=1)
    model = seeded(nn.Sequential(nn.Conv2d(3, 4, 3, stride=2)))
    from densify.samples import Sample

    dense = package.convert(model, (1, 3, 33, 40), output_stride=1)
    name = "</title><script>alert(1)</script>"
    assert report(model, dense, [Sample(str(sample), x)], out, name=name)
    found = read(out)
    assert str(sample) in found.text("Pictures")
    assert name in found.text("")
    assert "<script" not in out.read_text()


def test_what_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    model, out = seeded(Residual()), tmp_path / "report.html"
    dense = package.convert(model, (1, 3, 32, 32), output_stride=4)
    assert report(model, dense, images(32, 40), out)
    assert "each prediction sees the whole image" in read(out).text("Pictures")
    flat = package.convert(seeded(nn.Sequential(nn.Conv1d(3, 4, 3, stride=2))), (1, 3, 32), output_stride=1)
    assert report(None, flat, images(32, batch=1), out, overwrite=True)
    assert "pictures are of" in read(out).text("Pictures")


def test_a_verification_that_failed_is_reported(tmp_path: Path) -> None:
    model, out = seeded(nn.Sequential(nn.Conv2d(3, 4, 3, stride=2))), tmp_path / "report.html"
    dense = package.convert(model, (1, 3, 33, 40), output_stride=1)
    with torch.no_grad():
        model.get_parameter("0.bias").add_(1)
    assert not report(model, dense, images(33, 40, batch=1), out)
    found = read(out)
    assert "FAILED:" in found.text("")
    assert "FAIL" in found.text("Verification")


def test_a_report_is_the_same_each_time(tmp_path: Path) -> None:
    model = seeded(nn.Sequential(nn.Conv2d(3, 4, 3, stride=2)))
    dense = package.convert(model, (1, 3, 33, 40), output_stride=1)
    for name in "ab":
        package.report(model, dense, images(33, 40), tmp_path / f"{name}.html")
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


REFUSED: dict[str, tuple[list[str], int, str]] = {
    "format": (["DENSE", "--sample", SCENE, "-o", "r.pdf"], 2, "name an .html file"),
    "existing": (["DENSE", "--sample", SCENE, "-o", "old.html"], 2, "--overwrite"),
    "code": (["DENSE", "--sample", SCENE, "-o", "r.html"], 4, "--trust-code"),
    "an original": ([DIGITS, "--sample", SCENE, "-o", "r.html"], 2, "densify convert writes one"),
    "a plain graph": (["NET", "--sample", SCENE, "-o", "r.html"], 2, "is no dense network"),
    "no sample": (["DENSE", "--sample", "none.png", "-o", "r.html", "--model", DIGITS], 2, "there is no such file"),
    "a channel": (
        ["DENSE", "--sample", SCENE, "-o", "r.html", "--model", DIGITS, "--channel", "11"],
        2,
        "from 0 to 10",
    ),
    "without samples": (["DENSE", "-o", "r.html"], 2, "--sample"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_and_leaves_nothing(
    case: str, dense: Path, net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    Path("old.html").write_text("old")
    given, status, words = REFUSED[case]
    stand = {"DENSE": str(dense), "NET": str(net)}
    made = densify("report", *(stand.get(part, part) for part in given))
    assert made.status == status, made.stderr
    assert words in made.stderr
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"old.html": "old"}


def test_an_original_that_is_dense_is_refused(tmp_path: Path) -> None:
    dense = package.convert(seeded(nn.Sequential(nn.Conv2d(3, 4, 3, stride=2))), (1, 3, 33, 40), output_stride=1)
    with pytest.raises(UsageError, match="dense itself"):
        report(dense, dense, images(33, 40), tmp_path / "r.html")


# ---- in a browser --------------------------------------------------------------------------------

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


def shot(file: Path, folder: Path, width: int, height: int) -> np.ndarray:
    """What a browser without a network shows of a file, [H, W, 3]."""
    assert BROWSER is not None
    out = folder / f"shot{width}.png"
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
         "--no-first-run", "--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9",
         f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}", f"--screenshot={out}",
         file.as_uri()],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with Image.open(out) as picture:
        return np.array(picture.convert("RGB"))


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH: the page is not looked at in a browser")
def test_a_browser_shows_the_page_with_its_pictures(tmp_path: Path) -> None:
    red = np.zeros((40, 60, 3), np.uint8)
    red[:] = (255, 0, 0)
    stream = io.BytesIO()
    Image.fromarray(red).save(stream, "PNG")
    rows = [{"name": "a name that is long " * 9, "number": "1" * 80}]
    body = page.pictures([page.picture(stream.getvalue(), "a picture", "red")]) + page.table(rows)
    file = tmp_path / "page.html"
    file.write_text(page.page("title", {"Pictures": body}))
    for width in (1200, 500):
        seen = shot(file, tmp_path, width, 700)
        reds = (seen == (255, 0, 0)).all(-1)
        assert reds.sum() > 20_000  # the picture is there, at the width of its column
        columns = np.flatnonzero(reds.any(0))
        assert columns[-1] < seen.shape[1] - 8  # and ends inside the window, as the wide table does
        assert (seen[:, -6:] == seen[0, 0]).all()


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH: the report is not looked at in a browser")
def test_a_browser_shows_a_report(tmp_path: Path) -> None:
    model, out = seeded(nn.Sequential(nn.Conv2d(3, 4, 3, stride=2))), tmp_path / "report.html"
    dense = package.convert(model, (1, 3, 33, 40), output_stride=1)
    report(model, dense, images(33, 40, batch=1), out, show="channel:0")
    seen = shot(out, tmp_path, 1000, 2400)
    from densify.pictures.colours import sequential

    table = {tuple(map(int, colour)) for colour in sequential()}
    shown = {tuple(map(int, colour)) for colour in np.unique(seen.reshape(-1, 3), axis=0)}
    assert len(table & shown) > 100  # the maps and their scale, in their own colours
