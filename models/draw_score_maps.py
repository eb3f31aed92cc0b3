"""Draw what models/digit_segmentation.py makes of an image, coarse and dense: `python models/draw_score_maps.py`.

Above: the image, the score of the digit that the last stage thinks likeliest at a sample every 16 pixels, the same
interpolated, and the dense network's at a sample every 4 pixels; in one scale, every sample around the pixel that it
looks at. Below: the true labels, and those that the network and its dense form (merge="average") give every pixel.
Writes docs/score_maps.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torch import Tensor, nn

import densify

from digit_segmentation import BACKGROUND, INPUT_SIZE, MEAN, STD, DigitSegmentation, digit_segmentation

HERE = Path(__file__).resolve().parent
STEP = 16  # of the coarse scores, in pixels
SCALE = 2  # pixels of the picture per pixel of the image
GAP, LINE = 8, 14  # between panels, and for a line of text
COLOURS = np.array(
    [[31, 119, 180], [255, 127, 14], [44, 160, 44], [214, 39, 40], [148, 103, 189], [140, 86, 75], [227, 119, 194],
     [188, 189, 34], [23, 190, 207], [255, 221, 87], [24, 24, 24]], np.uint8,
)  # fmt: skip

Picture = NDArray[np.uint8]


class Coarse(nn.Module):
    """The class scores that the last stage alone makes, every 16 pixels: images to [B, 11, h, w].

    They are what the two transposed convolutions would make of a map that is the same everywhere: the sums of their
    kernels over the taps that meet a sample.
    """

    def __init__(self, net: DigitSegmentation) -> None:
        super().__init__()
        self.net = net
        kernel = net.up2.weight.sum((2, 3)) / 4 @ (net.up8.weight.sum((2, 3)) / 64)
        self.classes = nn.Conv2d(kernel.shape[0], kernel.shape[1], kernel_size=1, bias=False)
        self.classes.weight.data = kernel.t()[:, :, None, None].detach()

    def forward(self, x: Tensor) -> Tensor:
        net = self.net
        x = net.pool1(torch.relu(net.bn1(net.conv1(x))))
        x = net.pool2(torch.relu(net.bn2(net.conv2(x))))
        x = net.pool3(torch.relu(net.bn3b(net.conv3b(torch.relu(net.bn3a(net.conv3a(x)))))))
        scores: Tensor = self.classes(net.score4(net.pool4(torch.relu(net.bn4(net.conv4(x))))))
        return scores


@torch.no_grad()
def panels(scene: Picture, labels: Picture) -> list[list[tuple[str, Picture]]]:
    """Two rows of pictures [height, width, 3] and what they show."""
    net = digit_segmentation()
    net.load_state_dict(load_file(HERE / "digit_segmentation.safetensors"))
    image, size = as_input(scene), scene.shape[:2]
    coarse = Coarse(net.eval()).eval()
    dense_scores = densify.convert(coarse, (1, *INPUT_SIZE), start="net.pool3")
    dense_net = densify.convert(net, (1, *INPUT_SIZE), start="pool3", merge="average")
    maps = [made[0, :BACKGROUND].amax(0) for made in (coarse(image), dense_scores(image))]
    between = F.interpolate(maps[0][None, None], scale_factor=STEP, mode="bilinear")[0, 0, : size[0], : size[1]]
    low, high = min(float(one.min()) for one in maps), max(float(one.max()) for one in maps)
    first = [int((at.first or 0) - (at.step - 1) / 2) for at in dense_scores.positions["output"]]
    pairs = ((maps[0], STEP, (0, 0)), (between, 1, (0, 0)), (maps[1], STEP // 4, first))
    drawn = [_grey(one.repeat_interleave(k, 0).repeat_interleave(k, 1), at, size, low, high) for one, k, at in pairs]
    answers = [model(image)[0].argmax(0).numpy() for model in (net, dense_net)]
    counts = [f"{len(one)} x {one.shape[1]}" for one in maps]
    steps = [f"{counts[0]} scores", "the same, interpolated", f"dense: {counts[1]} scores"]
    return [
        [("image", scene), *zip(steps, drawn, strict=True)],
        [("truth", COLOURS[labels]), ("labels", COLOURS[answers[0]]), ("dense labels", COLOURS[answers[1]])],
    ]


def as_input(scene: Picture) -> Tensor:
    """A picture [H, W, 3] as the network takes it, [1, 3, H, W]."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return ((torch.from_numpy(scene).permute(2, 0, 1) / 255 - mean) / std)[None]


def _grey(scores: Tensor, first: Sequence[int], size: tuple[int, ...], low: float, high: float) -> Picture:
    """Scores from `low` (black) to `high` (white) from pixel `first` on, those at the border repeated."""
    axes = zip(size, first, scores.shape, strict=True)
    rows, columns = ((torch.arange(n) - at).clamp(0, have - 1) for n, at, have in axes)
    shades = (scores[rows][:, columns] - low) / (high - low) * 255
    return np.repeat(shades.round().byte().numpy()[:, :, None], 3, 2)


def draw(rows: list[list[tuple[str, Picture]]]) -> Image.Image:
    """All panels on one sheet, each with a line of text above it."""
    height, width = (SCALE * length for length in rows[0][0][1].shape[:2])
    columns = max(map(len, rows))
    sheet = Image.new("RGB", (columns * (width + GAP) - GAP, len(rows) * (height + LINE + GAP) - GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for y, row in enumerate(rows):
        for x, (text, pixels) in enumerate(row):
            corner = (x * (width + GAP), y * (height + LINE + GAP))
            pen.text(corner, text, fill="black")
            large = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(large, (corner[0], corner[1] + LINE))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw coarse and dense score maps of a digit scene.")
    parser.add_argument("-o", "--output", type=Path, default=HERE.parent / "docs" / "score_maps.png")
    arguments = parser.parse_args()
    scene = np.array(Image.open(HERE / "samples" / "scene1.png").convert("RGB"))
    labels = np.array(Image.open(HERE / "samples" / "scene1_labels.png"))
    draw(panels(scene, labels)).save(arguments.output, optimize=True)
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
