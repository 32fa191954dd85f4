"""Networks that normalize before their convolutions: what moving the shift of a batch norm does to an explanation.

    python benchmarks/normalized_first.py [--samples 200] [--seeds 3]

A small DenseNet and a small pre-activation ResNet are trained on scikit-learn's digits (seconds each; kept in the
demo's cache). Test scans are explained by presets without a canonizer, with MergeBatchNorm, with
MergeBatchNormForward, and with both. Printed is the symmetric relevance gain of removing patches of 2 x 2 pixels, in
units of the logit, and in brackets the sum of |R| as a multiple of the logit.
"""

import argparse

import torch
from measure import show
from torch import Tensor, nn
from torch.nn import functional as F

from lxt_compose import Composite, Epsilon, Gamma, MergeBatchNorm, MergeBatchNormForward, attribute, evaluate, presets
from lxt_compose.demo.data import load_digits
from lxt_compose.demo.training import Settings, accuracy, default_cache, trained

EPOCHS = 12
CANONIZERS = {
    "none": [],
    "MergeBatchNorm": [MergeBatchNorm()],
    "MergeBatchNormForward": [MergeBatchNormForward()],
    "both": [MergeBatchNorm(), MergeBatchNormForward()],
}
COMPOSITES = {
    "epsilon": presets.epsilon,
    "epsilon_plus": presets.epsilon_plus,
    "epsilon_alpha2_beta1": presets.epsilon_alpha2_beta1,
    "gamma 0.25": lambda **options: Composite({nn.Conv2d: Gamma(0.25), nn.Linear: Epsilon()}, **options),
}


class DenseLayer(nn.Module):
    """Batch norm, ReLU, convolution, twice; what it adds is put beside its input (Huang et al. 2017)."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 2 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(2 * growth), nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, inputs, height, width] to `growth` channels more."""
        return torch.cat([x, self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))], 1)


class SmallDenseNet(nn.Module):
    """Two blocks of three layers: [batch, 1, 8, 8] to [batch, 10] logits."""

    def __init__(self, growth: int = 8) -> None:
        super().__init__()
        width, parts = 16, []
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        for block in range(2):
            for _ in range(3):
                parts.append(DenseLayer(width, growth))
                width += growth
            if block == 0:
                halved = nn.Conv2d(width, width // 2, 1, bias=False)
                parts += [nn.BatchNorm2d(width), nn.ReLU(), halved, nn.AvgPool2d(2)]
                width //= 2
        self.features, self.norm, self.head = nn.Sequential(*parts), nn.BatchNorm2d(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the ten digits."""
        return self.head(F.relu(self.norm(self.features(self.stem(x)))).mean((2, 3)))


class PreActivation(nn.Module):
    """A residual block that normalizes before its convolutions (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, inputs, height, width] to `outputs` channels."""
        h = F.relu(self.bn1(x))
        return self.conv2(F.relu(self.bn2(self.conv1(h)))) + (x if self.shortcut is None else self.shortcut(h))


class SmallPreActivationResNet(nn.Module):
    """Three blocks: [batch, 1, 8, 8] to [batch, 10] logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(PreActivation(16, 16), PreActivation(16, 32, 2), PreActivation(32, 32))
        self.bn, self.head = nn.BatchNorm2d(32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the ten digits."""
        return self.head(F.relu(self.bn(self.blocks(self.stem(x)))).mean((2, 3)))


def main() -> None:
    """Print one table for each network and seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    digits = load_digits()
    x = digits.test_images[: options.samples]
    for build in (SmallDenseNet, SmallPreActivationResNet):
        for seed in range(options.seeds):
            model, _ = trained(build, digits, Settings(EPOCHS, seed=seed), default_cache())
            with torch.no_grad():
                y, target = model(x).max(1)
            rows = []
            for name, composite in COMPOSITES.items():
                cells = []
                for canonizers in CANONIZERS.values():
                    made = composite(canonizers=canonizers)
                    scores = attribute(model, x, target=target, composite=made).scores
                    gain = evaluate.flip(model, x, scores, target=target, patch=2).gain
                    cells.append(f"{gain:.2f} ({float(scores.abs().sum() / y.abs().sum()):.1f})")
                rows.append([name, *cells])
            right = accuracy(model, digits.test_images, digits.test_labels)
            show(f"{build.__name__}, seed {seed}, accuracy {right:.1%}", ["", *CANONIZERS], rows)


if __name__ == "__main__":
    main()
