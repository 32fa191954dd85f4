"""Models from disk: checkpoints of transformers, and models that a Python function makes. Nothing is downloaded."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CompositeError

_TOKENS, _SECOND = 8, 16_000
_BESIDE = {
    "AutoTokenizer": ("tokenizer", "tokenizer_config.json"),
    "AutoImageProcessor": ("image processor", "preprocessor_config.json"),
    "AutoProcessor": ("processor", "processor_config.json", "preprocessor_config.json"),
}
_WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json", "*.bin.index.json")


class CheckpointError(CompositeError):
    """A model cannot be loaded from here; the message says what to do."""


@dataclass(frozen=True)
class Loaded:
    """A model in ``eval()`` mode, its name, its source, and inputs for it if its factory gave some.

    ``trained`` is false if the folder holds no weights, so that they are random.
    """

    model: nn.Module
    name: str
    folder: Path | None = None
    inputs: Any = None
    trained: bool = True


def load_model(reference: str, *, weights: bool = True, dtype: torch.dtype = torch.float32) -> Loaded:
    """Return the model of a checkpoint folder, or of ``module:factory``.

    Args:
        reference: a folder with a ``config.json``, or the name of a Python module and of something in it: a model, or
            a function without arguments that returns a model, or a model and inputs for it.
        weights: whether the folder must hold weights; without, they are random, which is enough for a coverage report.
        dtype: of the parameters of a checkpoint.

    Raises:
        CheckpointError: there is no such model, or it cannot be loaded.
    """
    folder = Path(reference).expanduser()
    if folder.is_dir():
        return _from_folder(folder, weights, dtype)
    module, colon, name = reference.partition(":")
    if colon and name and all(part.isidentifier() for part in module.split(".")):
        return _from_factory(module, name)
    raise CheckpointError(
        f"{reference!r} is no folder here, and no module:factory; models are not downloaded, give the path of a "
        f"checkpoint folder"
    )


def _from_factory(module: str, name: str) -> Loaded:
    with _working_directory_on_path():
        made = _made(module, name)
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise CheckpointError(f"{module}:{name} is or gave {type(model).__name__}, not a torch.nn.Module")
    return Loaded(model.eval(), type(model).__name__, inputs=inputs)


def load_object(reference: str) -> Any:
    """Return the object ``module:name``, such as a data set; for a function or class, what a call returns.

    Raises:
        CheckpointError: there is no such object, or it cannot be made without arguments.
    """
    module, colon, name = reference.partition(":")
    if not (colon and name and all(part.isidentifier() for part in module.split("."))):
        raise CheckpointError(f"{reference!r} is no module:name")
    with _working_directory_on_path():
        return _made(module, name)


def _made(module: str, name: str) -> Any:
    """Return the object of this name in a module, or what it returns if it is a function."""
    try:
        found = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise CheckpointError(f"the module {module!r} cannot be imported: {error}") from error
    except AttributeError as error:
        if getattr(error, "name", None) == name:
            raise CheckpointError(f"the module {module!r} has nothing called {name!r}") from None
        raise CheckpointError(f"the module {module!r} cannot be imported: {_raised(error)}") from error
    except Exception as error:  # whatever a user's file does
        raise CheckpointError(f"the module {module!r} cannot be imported: {_raised(error)}") from error
    if isinstance(found, nn.Module) or not callable(found):
        return found
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise CheckpointError(f"{module}:{name} cannot be called without arguments: {error}") from None
    except ValueError:  # it has no signature
        pass
    try:
        return found()
    except Exception as error:  # whatever a user's function does
        raise CheckpointError(f"{module}:{name}() raised {_raised(error)}") from error


def _raised(error: Exception) -> str:
    """Return an exception in words, with the line of code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    tells = isinstance(error, SyntaxError) or not frames
    at = "" if tells else f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})"
    return f"{type(error).__name__}: {error}{at}"


@contextmanager
def _working_directory_on_path() -> Iterator[None]:
    """Put the working directory on the path, also for the function that makes the model."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def _from_folder(folder: Path, weights: bool, dtype: torch.dtype) -> Loaded:
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} holds no config.json, so it is no checkpoint of transformers")
    has_weights = any(next(folder.glob(pattern), None) for pattern in _WEIGHTS)
    if weights and not has_weights:
        raise CheckpointError(f"{folder} holds no weights ({', '.join(_WEIGHTS[:2])})")
    with quiet_transformers() as transformers:
        config = _config(transformers, folder)
        kind = _class_of(transformers, config, folder)
        typed = {"dtype" if hasattr(config, "dtype") else "torch_dtype": dtype}  # its name before transformers 4.56
        if not has_weights:
            model = kind._from_config(config, **typed)
            return Loaded(model.eval(), kind.__name__, folder, trained=False)
        try:
            model, info = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True, **typed)
        except Exception as error:  # readers of formats raise various errors for a damaged file
            raise CheckpointError(f"the weights in {folder} cannot be loaded: {error}") from error
    missing = sorted(info["missing_keys"])
    if weights and missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise CheckpointError(f"the checkpoint has no weights for {shown} of {kind.__name__}; they would be random")
    return Loaded(model.eval(), kind.__name__, folder)


def _config(transformers: Any, folder: Path) -> Any:
    try:
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}/config.json cannot be used: {error}") from error


def _class_of(transformers: Any, config: Any, folder: Path) -> Any:
    """Return the class that the checkpoint was saved from."""
    names = getattr(config, "architectures", None) or []
    for name in names:
        kind = getattr(transformers, name, None)
        if isinstance(kind, type):
            return kind
    if names or not hasattr(config, "model_type"):
        wanted = ", ".join(names) or "no architecture"
        raise CheckpointError(
            f"{folder}/config.json names {wanted}, which this version of transformers does not have; code in a "
            f"checkpoint is not run: load the model yourself and use module:factory"
        )
    return transformers.AutoModel._model_mapping[type(config)]


def load_beside(loaded: Loaded, what: str) -> Any:
    """Return the tokenizer or processor of a checkpoint.

    Args:
        loaded: the checkpoint.
        what: ``"AutoTokenizer"``, ``"AutoImageProcessor"`` or ``"AutoProcessor"``.

    Raises:
        CheckpointError: there is none.
    """
    if loaded.folder is None:
        raise CheckpointError(f"{loaded.name} is from a function, so there is no tokenizer or image processor for it")
    needed, *files = _BESIDE[what]
    if not any((loaded.folder / file).is_file() for file in files):
        raise CheckpointError(f"{loaded.folder} holds no {needed} ({files[0]})")
    with quiet_transformers() as transformers:
        try:
            return getattr(transformers, what).from_pretrained(loaded.folder, local_files_only=True)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise CheckpointError(f"the {needed} in {loaded.folder} cannot be loaded: {error}") from error


@contextmanager
def quiet_transformers() -> Iterator[Any]:
    """Import transformers, and show only its errors and no progress bars in this context.

    Raises:
        CheckpointError: it is not installed.
    """
    try:
        import transformers
        from transformers.utils import logging
    except ImportError:
        raise CheckpointError("checkpoints need transformers: pip install 'lxt-compose[hf]'") from None
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield transformers
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def dummy_inputs(loaded: Loaded, shape: tuple[int, ...] | None = None) -> Any:
    """Return inputs of the right shape for a model, with random values: from its maker, a shape, or the model's config.

    Args:
        loaded: the model.
        shape: of one floating point tensor.

    Raises:
        CheckpointError: the config does not tell the shape, or a shape is given for a model that takes token ids.
    """
    generator = torch.Generator().manual_seed(0)
    if shape is not None:
        if loaded.folder is not None and getattr(loaded.model, "main_input_name", "").endswith("input_ids"):
            raise CheckpointError(
                f"{loaded.name} takes token ids, which are made from its config; leave out --input-shape"
            )
        return torch.randn(shape, generator=generator)
    if loaded.inputs is not None:
        return loaded.inputs
    config = getattr(loaded.model, "config", None)
    if config is None:
        raise CheckpointError(
            f"{loaded.name} has no config that tells its inputs; give --input-shape 1,3,32,32, or let the function "
            f"return (model, inputs)"
        )
    inputs = dict(_from_config(loaded.model, config, generator))
    accepted = inspect.signature(loaded.model.forward).parameters
    return {name: value for name, value in inputs.items() if name in accepted}


def _from_config(model: nn.Module, config: Any, generator: torch.Generator) -> Iterator[tuple[str, Tensor]]:
    main = getattr(model, "main_input_name", "input_ids")
    known = _settings(config)
    if main in ("input_ids", "decoder_input_ids") or "vocab_size" in known:
        size = known.get("vocab_size")
        if not isinstance(size, int):
            raise CheckpointError(f"the config of {type(model).__name__} has no vocab_size; use module:factory")
        ids = torch.randint(0, size, (1, _TOKENS), generator=generator)
        yield from (("input_ids", ids), ("decoder_input_ids", ids))
        if main == "input_ids":
            yield "attention_mask", torch.ones_like(ids)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    if main == "pixel_values" or "image_size" in known:
        height, width = _pair(known.get("image_size", 64))
        image = torch.randn(1, known.get("num_channels", 3), height, width, generator=generator)
        yield "pixel_values", image.to(dtype)
    if main == "input_values":
        yield "input_values", torch.randn(1, _SECOND, generator=generator).to(dtype)
    if main == "input_features":
        frames, bins = 2 * known.get("max_source_positions", 50), known.get("num_mel_bins", 80)
        yield "input_features", torch.randn(1, bins, frames, generator=generator).to(dtype)


def _settings(config: Any) -> dict[str, Any]:
    """Return all settings of a config, and of the configs for text and vision inside of it."""
    own: Mapping[str, Any] = json.loads(config.to_json_string(use_diff=False))
    inner: dict[str, Any] = {}
    for name in ("vision_config", "text_config"):
        inner.update(own.get(name) or {})
    return {**inner, **own}


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, (list, tuple)):
        return int(size[0]), int(size[1])
    return int(size), int(size)
