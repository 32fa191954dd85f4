"""Training with a fixed seed; the weights are cached on disk."""

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .data import Digits, shifted


@dataclass(frozen=True)
class Settings:
    """How to train: passes over the data, scans in a batch, largest learning rate, weight decay, and the seed."""

    epochs: int
    batch_size: int = 32
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    seed: int = 0


class Trained(NamedTuple):
    """A model in eval mode, and whether it came out of the cache."""

    model: nn.Module
    from_cache: bool


def default_cache() -> Path:
    """Return the folder for trained models: `lxt_compose` in XDG_CACHE_HOME, or in ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lxt_compose"


def trained(
    build: Callable[[], nn.Module],
    digits: Digits,
    settings: Settings,
    cache: Path,
    *,
    retrain: bool = False,
    progress: bool = False,
) -> Trained:
    """Return the model that `build` makes, trained, from the cache if a valid file is there.

    The file's name carries a hash of all that the weights depend on, so that what was trained otherwise is another
    file. The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        model = build()
        path = cache / f"{type(model).__name__}-{_fingerprint(model, settings)}.pt"
        if not retrain and _load(model, path):
            return Trained(model.eval(), from_cache=True)
        torch.manual_seed(settings.seed)
        model = build()  # again: a file that fits in part has overwritten some of the first one
        with one_thread():
            _fit(model, digits, settings, progress)
    _save(model, path)
    return Trained(model.eval(), from_cache=False)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread: threads on layers this small mostly wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images that the model names right, 0 to 1."""
    return (model(images).argmax(1) == labels).double().mean().item()


def _fit(model: nn.Module, digits: Digits, settings: Settings, progress: bool) -> None:
    """Train the model in place: AdamW on a one-cycle schedule, on scans that are moved about a little."""
    from tqdm import tqdm

    generator = torch.Generator().manual_seed(settings.seed)
    batches = -(-len(digits.train_images) // settings.batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, settings.epochs * batches)
    model.train()
    for _ in tqdm(range(settings.epochs), f"training {type(model).__name__}", unit="epoch", disable=not progress):
        order = torch.randperm(len(digits.train_images), generator=generator)
        for chosen in order.split(settings.batch_size):
            images = shifted(digits.train_images[chosen], generator)
            loss = nn.functional.cross_entropy(model(images), digits.train_labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def _fingerprint(model: nn.Module, settings: Settings) -> str:
    """Hash the settings, the model, torch's version, and the code that trains, down to the last constant."""
    code = [Path(__file__).with_name(name).read_text("utf-8") for name in ("data.py", "models.py", "training.py")]
    parts = (settings, repr(model), torch.__version__, code)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def _load(model: nn.Module, path: Path) -> bool:
    """Fill the model from the file; False if there is none, or none that fits: it is trained again then."""
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state)
    except Exception:  # a damaged file may raise any error
        return False
    return True


def _save(model: nn.Module, path: Path) -> None:
    """Write beside the file and then rename, so that no reader ever sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        try:
            torch.save(model.state_dict(), file)
        except BaseException:
            os.unlink(file.name)
            raise
    os.replace(file.name, path)
