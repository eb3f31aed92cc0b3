"""Train models/digit_segmentation.py on scenes of handwritten digits, on the CPU.

`python models/train_digit_segmentation.py` writes digit_segmentation.safetensors and the labels of the sample scenes
beside this file, and prints the mean IoU on scenes made of digits that were held out. With `--epochs 0` it measures the
weights that are there, and writes nothing; with `--start pool3` it measures the dense network too. Needs the extra
`train` (scikit-learn). The same seed gives the same scenes everywhere; the weights may differ in their last digits from
one machine to another.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file, save_file

import densify

from digit_scenes import Digits, Labels, scene, split_digits
from digit_segmentation import CLASSES, INPUT_SIZE, DigitSegmentation, digit_segmentation
from train_digits import as_bytes, as_input, samples

HERE = Path(__file__).resolve().parent
CHECKPOINT = HERE / "digit_segmentation.safetensors"
MARGIN = 12  # half a digit: the scene ends where a digit may end
COUNT = 10  # digits in a scene at most

Scenes = tuple[NDArray[np.uint8], Labels]


def scenes(rng: np.random.Generator, digits: Digits, count: int) -> Scenes:
    """New scenes [n, H, W, 3] of the digits as bytes, and their labels [n, H, W]."""
    _, height, width = INPUT_SIZE
    made = [scene(rng, digits, height, width, COUNT, MARGIN) for _ in range(count)]
    return np.stack([as_bytes(one.image) for one in made]), np.stack([one.labels for one in made])


def train(net: DigitSegmentation, data: Scenes, epochs: int, batch: int) -> None:
    """Fit the net to scenes by the cross entropy of every pixel."""
    images, labels = data[0], torch.from_numpy(data[1])
    steps = epochs * (len(labels) // batch)
    optimiser = torch.optim.AdamW(net.parameters(), lr=4e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=4e-3, total_steps=steps)
    net.train()
    step, total = 0, 0.0
    while step < steps:
        order = torch.randperm(len(labels))
        for rows in order[: len(labels) // batch * batch].split(batch):
            loss = torch.nn.functional.cross_entropy(net(as_input(images[rows.numpy()])), labels[rows].long())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            step, total = step + 1, total + float(loss.detach())
            if step % 100 == 0:
                print(f"step {step}/{steps}: mean loss {total / 100:.4f}", flush=True)
                total = 0.0


def intersections_over_unions(confusion: torch.Tensor) -> torch.Tensor:
    """IoU per class [K] of a confusion matrix [K, K], counts of pixels by truth and answer."""
    both = confusion.diagonal().double()
    return both / (confusion.sum(0) + confusion.sum(1) - both)


@torch.no_grad()
def report(net: torch.nn.Module, data: Scenes) -> None:
    """Print the mean IoU, the IoU of every class and the share of right pixels on held-out scenes."""
    net.eval()
    kinds = len(CLASSES)
    confusion = torch.zeros(kinds, kinds, dtype=torch.long)
    for image, truth in zip(as_input(data[0]), torch.from_numpy(data[1]).long(), strict=True):
        answer = net(image[None])[0].argmax(0)
        confusion += torch.bincount((truth * kinds + answer).flatten(), minlength=kinds**2).view(kinds, kinds)
    shares = intersections_over_unions(confusion)
    right = confusion.diagonal().sum() / confusion.sum()
    print(f"held-out scenes ({len(data[1])}): mean IoU {shares.mean():.2%}, {right:.2%} of the pixels right")
    print(", ".join(f"{name} {share:.1%}" for name, share in zip(CLASSES, shares.tolist(), strict=True)))


def write_labels(folder: Path, digits: Digits, seed: int) -> None:
    """The labels of train_digits.py's two sample scenes as grey images, scene1_labels.png and scene2_labels.png."""
    for name, made in samples(digits, seed).items():
        if name.startswith("scene"):
            Image.fromarray(made.labels).save(folder / name.replace(".png", "_labels.png"), optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the digit segmentation; write its checkpoint.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=3000, help="training scenes")
    parser.add_argument("--epochs", type=int, default=9, help="0: only measure the weights that are there")
    parser.add_argument("--start", metavar="LAYER", help="measure it made dense from this layer on, too")
    arguments = parser.parse_args()

    torch.set_num_threads(2)
    torch.manual_seed(arguments.seed)
    training, held_out = split_digits()
    net = digit_segmentation()
    if arguments.epochs:
        train(net, scenes(np.random.default_rng(arguments.seed), training, arguments.scenes), arguments.epochs, batch=8)
        save_file(net.state_dict(), CHECKPOINT, metadata={"format": "pt"})
        write_labels(HERE / "samples", held_out, arguments.seed + 2)
    else:
        net.load_state_dict(load_file(CHECKPOINT))
    fresh = scenes(np.random.default_rng(arguments.seed + 1), held_out, 200)
    report(net, fresh)
    if arguments.start is not None:
        print(f"made dense from {arguments.start} on, not trained any further:")
        report(densify.convert(net.eval(), (1, *INPUT_SIZE), start=arguments.start, merge="average"), fresh)


if __name__ == "__main__":
    main()
