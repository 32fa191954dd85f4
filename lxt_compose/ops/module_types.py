"""Groups of torch's module classes, for keys: ``Composite({kinds.CONVOLUTIONS: ZPlus(), nn.Linear: Epsilon()})``.

Each is a tuple of classes; subclasses match too.
"""

from torch import nn

__all__ = [
    "ACTIVATIONS",
    "AVERAGE_POOLS",
    "BATCH_NORMS",
    "CONVOLUTIONS",
    "LAYERS",
]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
"""Convolutions, transposed ones too."""

LAYERS = (nn.Linear, *CONVOLUTIONS)
"""Layers with a weight, linear in their input, for split rules."""

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""Batch normalization."""

AVERAGE_POOLS = (
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d
)  # fmt: skip
"""Average pooling, linear too."""

ACTIVATIONS = (
    nn.ELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardtanh, nn.Hardswish, nn.LeakyReLU, nn.LogSigmoid, nn.PReLU, nn.ReLU,
    nn.ReLU6, nn.RReLU, nn.SELU, nn.CELU, nn.GELU, nn.Sigmoid, nn.SiLU, nn.Mish, nn.Softplus, nn.Softshrink,
    nn.Softsign, nn.Tanh, nn.Tanhshrink, nn.Threshold,
)  # fmt: skip
"""Elementwise nonlinearities; functions such as ``F.relu`` need keys of their own, or the defaults."""
