"""Two small networks in plain PyTorch, without anything for relevance."""

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """`relu(x + f(x))` with two convolutions in `f`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, channels, height, width] to the same shape."""
        return torch.relu(x + self.second(torch.relu(self.first(x))))


class SmallCNN(nn.Module):
    """Convolutions, one residual block and a linear head: [batch, 1, 8, 8] to [batch, 10] logits."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1), nn.ReLU())
        self.residual = Residual(channels)
        self.down = nn.Sequential(
            nn.MaxPool2d(2), nn.Conv2d(channels, 2 * channels, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)
        )
        self.head = nn.Linear(2 * channels * 2 * 2, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the ten digits."""
        return self.head(self.down(self.residual(self.stem(x))).flatten(1))


class SmallViT(nn.Module):
    """A vision transformer on patches of 2 x 2 pixels: [batch, 1, 8, 8] to [batch, 10] logits."""

    def __init__(self, width: int = 64, heads: int = 4, layers: int = 2, dropout: float = 0.05) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, kernel_size=2, stride=2)
        # As large as the patches' values: sixteen patches this plain differ mostly in their positions.
        self.class_token = nn.Parameter(0.5 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.5 * torch.randn(1, 1 + 16, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the ten digits, read from the class token."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), tokens], dim=1)
        return self.head(self.encoder(tokens + self.positions)[:, 0])
