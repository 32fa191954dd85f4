"""Models for images: torchvision's segmentation, detection and video, segmentation_models_pytorch, diffusers."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from .case import Case, Maker, middle, numbers, spread


def _segmentation(name: str) -> Maker:
    def make() -> Case:
        model = import_module("torchvision.models.segmentation").__dict__[name](
            weights=None, weights_backbone=None, num_classes=4
        )
        return Case(spread(model), numbers(2, 3, 64, 64), lambda y: y["out"][:, 1, 32, 32])

    return make


class _Detector(nn.Module):
    """A detector of torchvision, given a batch: scores of its boxes, the first of each image that has any."""

    def __init__(self, model: nn.Module, what: str = "scores") -> None:
        super().__init__()
        self.model, self.what = model, what

    def forward(self, images: Tensor) -> Tensor:
        """Return the largest score of each image, or its mask."""
        return torch.stack([found[self.what][0] for found in self.model(list(images)) if len(found["scores"])])


def _detection(name: str, **options: Any) -> Maker:
    def make() -> Case:
        model = import_module("torchvision.models.detection").__dict__[name](
            weights=None, weights_backbone=None, num_classes=4, min_size=64, max_size=64, **options
        )
        return Case(_Detector(spread(model)), numbers(2, 3, 64, 64), lambda y: y)

    return make


def _mask_rcnn() -> Case:
    """One pixel of the mask of the first box."""
    parts, sizes = import_module("torchvision.models.detection"), ((16, 32, 64),) * 3
    backbone = parts.backbone_utils.mobilenet_backbone(backbone_name="mobilenet_v3_large", fpn=True, weights=None)
    anchors = parts.anchor_utils.AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 3)
    options = {"num_classes": 4, "min_size": 64, "max_size": 64, "box_score_thresh": 0.0}
    model = spread(parts.MaskRCNN(backbone, rpn_anchor_generator=anchors, **options))
    return Case(_Detector(model, "masks"), numbers(1, 3, 64, 64), lambda y: y.flatten(1).max(1).values)


def _video(name: str, size: int, frames: int) -> Maker:
    def make() -> Case:
        model = import_module("torchvision.models.video").__dict__[name](weights=None, num_classes=4)
        return Case(spread(model), numbers(1, 3, frames, size, size), lambda y: y[:, 1])

    return make


TORCHVISION: dict[str, Maker] = {
    name: _segmentation(name) for name in ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")
} | {
    "fasterrcnn_mobilenet_v3_large_320_fpn": _detection("fasterrcnn_mobilenet_v3_large_320_fpn", box_score_thresh=0.0),
    "retinanet_resnet50_fpn": _detection("retinanet_resnet50_fpn", score_thresh=0.0),
    "fcos_resnet50_fpn": _detection("fcos_resnet50_fpn", score_thresh=0.0),
    "ssdlite320_mobilenet_v3_large": lambda: Case(
        _Detector(
            spread(
                import_module("torchvision.models.detection").ssdlite320_mobilenet_v3_large(
                    weights=None, weights_backbone=None, num_classes=4, score_thresh=0.0
                )
            )
        ),
        numbers(1, 3, 64, 64),
        lambda y: y,
    ),
    "MaskRCNN, mobilenet_v3_large": _mask_rcnn,
    "r3d_18": _video("r3d_18", 32, 8),
    "r2plus1d_18": _video("r2plus1d_18", 32, 8),
    "s3d": _video("s3d", 224, 16),
    "swin3d_t": _video("swin3d_t", 64, 8),
}


def _smp(name: str) -> Maker:
    def make() -> Case:
        library = import_module("segmentation_models_pytorch")
        encoder = "tu-vit_tiny_patch16_224" if name == "DPT" else "resnet18"
        options = {"dynamic_img_size": True} if name == "DPT" else {}
        model = getattr(library, name)(encoder, encoder_weights=None, classes=3, **options)
        size = 128 if name == "PAN" else 64
        return Case(spread(model), numbers(2, 3, size, size), lambda y: y[:, 1, 32, 32])

    return make


SMP: dict[str, Maker] = {
    name: _smp(name)
    for name in (
        "Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "PAN", "DeepLabV3", "DeepLabV3Plus", "UPerNet",
        "Segformer", "DPT",
    )
}  # fmt: skip


def _diffusers(name: str, inputs: dict[str, Tensor], dims: Any = None, **options: Any) -> Maker:
    def make() -> Case:
        return Case(spread(getattr(import_module("diffusers"), name)(**options)), inputs, middle, dims)

    return make


STEP = torch.tensor([7])
BLOCKS = {"block_out_channels": (8, 16), "norm_num_groups": 4}
LATENT = {"sample": numbers(1, 4, 8, 8), "timestep": STEP}
TEXT = {"encoder_hidden_states": numbers(1, 5, 16)}
DIFFUSERS: dict[str, Maker] = {
    "UNet2DModel": _diffusers(
        "UNet2DModel", LATENT, sample_size=8, in_channels=4, out_channels=4, attention_head_dim=4, **BLOCKS,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ),
    "UNet2DConditionModel": _diffusers(
        "UNet2DConditionModel", LATENT | TEXT, sample_size=8, cross_attention_dim=16, attention_head_dim=4, **BLOCKS,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ),
    "DiTTransformer2DModel": _diffusers(
        "DiTTransformer2DModel",
        {"hidden_states": numbers(1, 4, 8, 8), "timestep": STEP, "class_labels": torch.tensor([2])},
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=4, num_layers=2, sample_size=8,
        patch_size=2, num_embeds_ada_norm=10, norm_num_groups=4,
    ),
    "Transformer2DModel": _diffusers(
        "Transformer2DModel", {"hidden_states": numbers(1, 16, 8, 8)} | TEXT, num_attention_heads=2,
        attention_head_dim=8, in_channels=16, num_layers=1, cross_attention_dim=16, norm_num_groups=4,
    ),
    "PixArtTransformer2DModel": _diffusers(
        "PixArtTransformer2DModel",
        {"hidden_states": numbers(1, 4, 8, 8), "timestep": STEP, "encoder_hidden_states": numbers(1, 5, 16)},
        num_attention_heads=2, attention_head_dim=8, num_layers=2, sample_size=8, cross_attention_dim=16,
        caption_channels=16, norm_num_groups=4,
    ),
    "SD3Transformer2DModel": _diffusers(
        "SD3Transformer2DModel",
        {"hidden_states": numbers(1, 4, 8, 8), "timestep": STEP, "encoder_hidden_states": numbers(1, 5, 16),
         "pooled_projections": numbers(1, 16)},
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=16,
        pos_embed_max_size=8,
    ),
    "AutoencoderKL": _diffusers(
        "AutoencoderKL", {"sample": numbers(1, 3, 16, 16)}, **BLOCKS,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
    ),
    "VQModel": _diffusers("VQModel", {"sample": numbers(1, 3, 16, 16)}, **BLOCKS,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
    ),
}  # fmt: skip
