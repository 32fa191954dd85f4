"""Small networks by the names of torchvision's, for tests that need models of that make and not their size."""

import importlib.machinery
import sys
import types

from torch import nn


class BasicBlock(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, width=4):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x):
        return self.relu(x + self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))


class ResNet(nn.Module):
    """A stem, two blocks, average pooling, a layer."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4)
        self.relu, self.maxpool = nn.ReLU(), nn.MaxPool2d(2)
        self.layer1 = nn.Sequential(BasicBlock(), BasicBlock())
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 5)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(self.avgpool(self.layer1(x)).flatten(1))


class Plain(nn.Module):
    """Convolutions with ReLU and max pooling, then dense layers with dropout."""

    def __init__(self, depth):
        super().__init__()
        layers = []
        for number in range(depth):
            layers += [nn.Conv2d(4 if number else 3, 4, 3, padding=1), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers, nn.MaxPool2d(2))
        self.avgpool = nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Linear(16, 8), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(8, 5)
        )

    def forward(self, x):
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


def stand_in_for_torchvision():
    """Put modules of torchvision's names into ``sys.modules``."""
    frozen, bottleneck = (type(name, (nn.Module,), {}) for name in ("FrozenBatchNorm2d", "Bottleneck"))
    made = {
        "torchvision.models": {
            "alexnet": lambda: Plain(2).eval(), "vgg11": lambda: Plain(3).eval(), "resnet18": lambda: ResNet().eval()
        },
        "torchvision.models.resnet": {"BasicBlock": BasicBlock, "Bottleneck": bottleneck},
        "torchvision.ops": {"FrozenBatchNorm2d": frozen},
        "torchvision.ops.misc": {"FrozenBatchNorm2d": frozen},
    }  # fmt: skip
    for name in ("torchvision", *made):
        module = sys.modules.setdefault(name, types.ModuleType(name))
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        vars(module).update(made.get(name, {}), __path__=[])
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
