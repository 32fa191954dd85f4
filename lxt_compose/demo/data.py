"""The digits: 1797 scans of handwritten digits, 8 x 8 pixels, that come with scikit-learn."""

from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor


class DemoError(RuntimeError):
    """The demo cannot run here; the message says what to do about it."""


def require_packages() -> None:
    """Raise `DemoError` if a package of the `demo` extra is not installed, before the training starts."""
    for module, package in (("sklearn", "scikit-learn"), ("matplotlib", "matplotlib"), ("tqdm", "tqdm")):
        try:
            import_module(module)
        except ImportError as error:
            raise DemoError(f"the demo needs {package}: pip install 'lxt-compose[demo]'") from error


@dataclass(frozen=True)
class Digits:
    """Training and test scans: images [n, 1, 8, 8] from 0 (empty) to 1 (full ink), and labels [n] from 0 to 9.

    Empty pixels are exactly 0, so the relevance that they get is 0 too, and pictures show the strokes alone.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    def one_of_each(self, count: int) -> Tensor:
        """Return the indices of the first test scan of each digit from 0 to `count - 1`."""
        return torch.stack([(self.test_labels == digit).nonzero()[0, 0] for digit in range(count)])


def load_digits(test_share: float = 0.25, seed: int = 0) -> Digits:
    """Return the digits, split so that each digit has the same share of training and test."""
    from sklearn import datasets, model_selection

    pixels, labels = datasets.load_digits(return_X_y=True)
    split = model_selection.train_test_split(pixels, labels, test_size=test_share, stratify=labels, random_state=seed)
    train, test = (torch.tensor(part / 16, dtype=torch.float32).reshape(-1, 1, 8, 8) for part in split[:2])
    return Digits(train, torch.tensor(split[2]), test, torch.tensor(split[3]))


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return the images [n, 1, 8, 8], half of them moved by up to one pixel up or down and left or right."""
    rows, columns = images.shape[-2:]
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    stays = torch.rand(len(images), 1, generator=generator) < 0.5  # the test scans are all centered
    down, right = torch.randint(0, 3, (2, len(images), 1), generator=generator).masked_fill(stays, 1)
    at_row = (down + torch.arange(rows))[:, :, None]
    at_column = (right + torch.arange(columns))[:, None, :]
    return padded[torch.arange(len(images))[:, None, None], 0, at_row, at_column][:, None]
