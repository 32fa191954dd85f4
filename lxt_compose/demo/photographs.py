"""Photographs, explained for a CNN that was trained on ImageNet."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..attribution import Attribution, attribute
from ..canonizers import MergeBatchNorm
from ..composite import Composite
from ..presets import epsilon_alpha2_beta1_flat, epsilon_gamma_box, epsilon_plus_flat
from .explain import scores_of
from .figure import Row, draw
from .pretrained import folder_of, missing

SIZE = 224
MEAN, SCALE = 127, 128  # of pixels from 0 to 255: as the CNN was trained
LOW, HIGH = (0 - MEAN) / SCALE, (255 - MEAN) / SCALE
# The classes of ImageNet (ILSVRC 2012), of 1000, that the CNN answers for the photographs below.
CLASSES = {
    281: "tabby", 282: "tiger cat", 285: "Egyptian cat", 442: "bell cote", 698: "palace", 925: "consommé",
    947: "mushroom", 967: "espresso", 968: "cup", 985: "daisy",
}  # fmt: skip


@dataclass(frozen=True)
class Photograph:
    """A photograph: its name, and its pixels [224, 224, 3] from 0 to 255."""

    name: str
    pixels: Tensor


def load_photographs() -> list[Photograph]:
    """Return those that come with scikit-learn, and those of scikit-image if it is installed; each cut to a square."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_sample_image

    images = []
    if not missing(("skimage",)):
        folder = folder_of("skimage") / "data"
        images = [(name, Image.open(folder / f"{name}.png").convert("RGB")) for name in ("chelsea", "coffee")]
    images += [(name, Image.fromarray(load_sample_image(f"{name}.jpg"))) for name in ("china", "flower")]
    found = []
    for name, image in images:
        side = min(image.size)
        left, top = ((length - side) // 2 for length in image.size)
        square = image.crop((left, top, left + side, top + side)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        found.append(Photograph(name, torch.from_numpy(np.array(square))))
    return found


def as_input(photographs: list[Photograph]) -> Tensor:
    """Return the CNN's input, [n, 3, 224, 224]."""
    pixels = torch.stack([photograph.pixels for photograph in photographs])
    return (pixels.permute(0, 3, 1, 2).float() - MEAN) / SCALE


def composites() -> dict[str, Composite]:
    """Return three presets for CNNs, with each batch norm merged into its convolution."""
    merged = [MergeBatchNorm()]
    return {
        "epsilon_plus_flat": epsilon_plus_flat(canonizers=merged),
        "epsilon_gamma_box": epsilon_gamma_box(low=LOW, high=HIGH, canonizers=merged),
        "epsilon_alpha2_beta1_flat": epsilon_alpha2_beta1_flat(canonizers=merged),
    }


@dataclass(frozen=True)
class ExplainedPhotographs:
    """The results: the two most probable classes of each photograph and their probabilities [n, 2]; relevance.

    `relevance` holds a result for each preset, `contrast` one for the most probable class less the second one, and
    `plain` gradient times input, [n, 224, 224].
    """

    classes: Tensor
    probabilities: Tensor
    relevance: dict[str, Attribution]
    contrast: Attribution
    plain: Tensor

    def maps(self, number: int) -> list[Tensor]:
        """Return the maps of a photograph, each [224, 224]: `plain`, each preset, the contrast."""
        results = (*self.relevance.values(), self.contrast)
        return [self.plain[number], *(scores_of(result)[number] for result in results)]

    @property
    def complete(self) -> bool:
        """Whether relevance passed no operation without a rule."""
        return all(one.report.complete for one in (*self.relevance.values(), self.contrast))


def explain_photographs(model: nn.Module, x: Tensor) -> ExplainedPhotographs:
    """Explain the class that the model names, under each preset, and against the runner-up."""
    leaf = x.clone().requires_grad_()
    logits = model(leaf)
    probabilities, classes = logits.softmax(-1).detach().topk(2)
    (gradient,) = torch.autograd.grad(logits.amax(1).sum(), leaf)
    every = composites()
    relevance = {
        name: attribute(model, x, composite=composite, target=classes[:, 0], ledger=True)
        for name, composite in every.items()
    }
    contrast = attribute(model, x, composite=every["epsilon_gamma_box"], target=classes)
    return ExplainedPhotographs(classes, probabilities, relevance, contrast, (x * gradient).sum(1))


def draw_photographs(photographs: list[Photograph], found: ExplainedPhotographs, path: Path) -> None:
    """Write the picture: a row for each photograph, a column for each way to explain it."""
    presets = [name.replace("_", "\n", 1).replace("_", " ") for name in found.relevance]
    columns = ["photograph", "gradient\n× input", *presets, "against the\nrunner-up"]
    rows = []
    for number, photograph in enumerate(photographs):
        first, second = (class_name(index) for index in found.classes[number].tolist())
        title = f"{first}\n{found.probabilities[number, 0]:.0%}\n\nrunner-up:\n{second}"
        rows.append(Row(title, [photograph.pixels, *map(_coarse, found.maps(number))]))
    draw(rows, columns, path, "What in the photograph speaks for what the network sees?")


def _coarse(relevance: Tensor) -> Tensor:
    """Return the sums over 2 x 2 pixels: single ones are too small to be seen."""
    return 4 * F.avg_pool2d(relevance[None], 2)[0]


def class_name(index: int) -> str:
    """Return the name of a class of ImageNet, or its number."""
    return CLASSES.get(index, f"class {index}")


def describe(photographs: list[Photograph], found: ExplainedPhotographs) -> str:
    """Return the predictions of the CNN and the coverage as text."""
    lines = [
        "EfficientNet-Lite0, trained on ImageNet; batch norms are merged into their convolutions, so most of a logit",
        "belongs to biases: the pictures show how what is left is spread over the pixels",
    ]
    for number, photograph in enumerate(photographs):
        seen = zip(found.classes[number].tolist(), found.probabilities[number].tolist(), strict=True)
        lines.append(f"  {photograph.name}: " + ", then ".join(f"{class_name(index)} {p:.0%}" for index, p in seen))
    for name, one in found.relevance.items():
        lines.append(f"  {name}: {str(one.report).splitlines()[0]}")
        lines.append(f"    {str(one.ledger).splitlines()[0]}")
    return "\n".join(lines)
