"""Names of the dimensions of an input, by the name of its argument."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

Dims = tuple[str, ...]
"""The name of each dimension of a tensor; ``UNKNOWN`` for those without one."""
UNKNOWN = "?"
BATCH = "batch"
IMAGE = (BATCH, "channel", "height", "width")
SEQUENCE = (BATCH, "token", "feature")


def is_graph(names: Iterable[str]) -> bool:
    """Return whether arguments of these names are those of a net for graphs, whose first dimension counts nodes."""
    return not {"edge_index", "adj", "adj_t"}.isdisjoint(names)


def by_argument_name(name: str, x: Tensor, model: nn.Module, *, graph: bool) -> Dims | None:
    """Return the dimensions of an argument of a model of transformers, or of a net for graphs."""
    n = x.dim()
    if graph and n in (1, 2):
        first = "edge" if name.startswith("edge") else "node"
        return (first, "feature" if x.is_floating_point() else "column")[:n]
    if not x.is_floating_point():
        return _of_ids(name, n, model)
    if name in ("pixel_values", "pixel_values_videos", "pixel_values_images"):
        video = "video" in name or _is_video(model)
        several = (BATCH, "frame" if video else "image", *IMAGE[1:])
        return {2: ("patch", "feature"), 3: (BATCH, "patch", "feature"), 4: IMAGE, 5: several}.get(n)
    if name.endswith(("inputs_embeds", "hidden_states", "visual_feats", "visual_embeds")):
        return SEQUENCE if n == 3 else None
    if name == "past_values":
        return {2: (BATCH, "time"), 3: (BATCH, "time", "channel")}.get(n)
    if name in ("input_features", "input_values"):
        return _of_sound(x, model)
    return None


def _of_ids(name: str, n: int, model: nn.Module) -> Dims | None:
    if n == 3:
        kind = "choice" if "MultipleChoice" in type(model).__name__ else "sequence"
        return (BATCH, "codebook" if hasattr(_config(model), "num_codebooks") else kind, "token")
    if n > 3 and not name.endswith(("ids", "tokens")):
        return None  # numbers that are no ids, of an image for instance
    if n != 2:
        return (BATCH,) if n == 1 else (BATCH, *["group"] * (n - 2), "token") if n else ()
    return (BATCH, "token") if name.endswith(("ids", "tokens")) else (BATCH, "column" if "cat" in name else "token")


def _of_sound(x: Tensor, model: nn.Module) -> Dims | None:
    """Return the names for waves [n, time] and for spectrograms, whose bins come before or after the time."""
    if x.dim() == 2:
        return (BATCH, "time")
    if x.dim() == 4:
        return (BATCH, "channel", "time", "mel")
    sizes = ("num_mel_bins", "feature_projection_input_dim", "input_feat_per_channel", "feature_size")
    places = _config(model), getattr(_config(model), "audio_config", None)
    bins = {getattr(place, size, None) for size in sizes for place in places} - {None}
    fitting = [place for place in (1, 2) if x.dim() == 3 and x.shape[place] in bins]
    if len(fitting) != 1:
        return None  # the first layer names them
    return (BATCH, "mel", "time") if fitting == [1] else (BATCH, "time", "mel")


def _config(model: nn.Module) -> Any:
    return getattr(model, "config", None)


def _is_video(model: nn.Module) -> bool:
    config = _config(model)
    return hasattr(config, "num_frames") or "video" in str(getattr(config, "model_type", "")).lower()
