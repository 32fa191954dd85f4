"""YOLO and RT-DETR of ultralytics, from its configurations: a score, a side of a box, and what else a head says."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from .case import Case, Maker, first, in_double, numbers, settled, spread


def _detection(y: Any) -> Tensor:
    """The logit of class 0 at the place where it is most likely, and one side of a box.

    The score itself where a head with random weights is so sure that the logit is infinite.
    """
    found = first(y)
    score = found[:, 4].amax(1)
    return (score if bool((score == 1).any()) else torch.logit(score)) + found[:, 2, 5]


def _and_more(y: Any) -> Tensor:
    """As well what comes behind the classes: a coefficient of a mask, a key point, an angle."""
    return _detection(y) + first(y)[:, -1, 3]


def _query(y: Any) -> Tensor:
    """The logit of a query, and one side of its box: of the best ones, in order."""
    return torch.logit(first(y)[:, 3, 4]) + first(y)[:, 3, 0]


def _sure_query(y: Any) -> Tensor:
    """The score of a query, and one side of its box."""
    return first(y)[:, 3, 4] + first(y)[:, 3, 0]


def _made(config: str, kind: str, goal: Callable[[Any], Tensor]) -> Maker:
    def make() -> Case:
        torch.manual_seed(0)
        parts = import_module("ultralytics.nn.tasks")
        model = in_double(spread(getattr(parts, kind)(config, verbose=False)))
        return Case(settled(model, numbers(2, 3, 64, 64)), numbers(1, 3, 64, 64), goal)

    return make


KINDS: dict[str, tuple[str, Callable[[Any], Tensor]]] = {
    "": ("DetectionModel", _detection),
    "-seg": ("SegmentationModel", _and_more),
    "-pose": ("PoseModel", _and_more),
    "-obb": ("OBBModel", _and_more),
    "-cls": ("ClassificationModel", lambda y: y[1][:, 1]),
}

YOLO: dict[str, Maker] = {
    name + task: _made(f"{name}{task}.yaml", kind, goal)
    for name in ("yolov8n", "yolo11n", "yolo12n")
    for task, (kind, goal) in KINDS.items()
}
YOLO |= {
    name: _made(f"{name}.yaml", "DetectionModel", _detection)
    for name in ("yolov3-tiny", "yolov5n", "yolov6n", "yolov8n-ghost", "yolov8n-p2", "yolov9t")
}
YOLO |= {  # these choose boxes in the model itself, by their scores
    "yolov10n": _made("yolov10n.yaml", "DetectionModel", _sure_query),
    "yolo26n": _made("yolo26n.yaml", "DetectionModel", _sure_query),
    "rtdetr-l": _made("rtdetr-l.yaml", "RTDETRDetectionModel", _query),
    "rtdetr-resnet50": _made("rtdetr-resnet50.yaml", "RTDETRDetectionModel", _query),
}
YOLO |= {
    "yolov8n-worldv2": _made("yolov8n-worldv2.yaml", "WorldModel", _detection),
    "yoloe-v8n": _made("yoloe-v8n.yaml", "YOLOEModel", lambda y: first(y)[:, 2, 5]),
    "yolo26n-sem": _made("yolo26n-sem.yaml", "SemanticSegmentationModel", lambda y: first(y)[:, 1, 3, 3]),
    "yolo26n-depth": _made("yolo26n-depth.yaml", "DepthModel", lambda y: first(y).flatten(1)[:, 30]),
}
