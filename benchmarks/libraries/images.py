"""Images and volumes: MONAI, Segment Anything, OpenCLIP, vit-pytorch; sound: torchaudio, asteroid, encodec."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from .case import Maker, first, numbers
from .sequences import made

IMAGES, VOLUMES, WAVES = numbers(2, 3, 32, 32), numbers(1, 1, 16, 16, 16), 0.1 * numbers(2, 1, 800)


def _of(module: str, name: str, **options: Any) -> nn.Module:
    return getattr(import_module(module), name)(**options)


def _monai(name: str, inputs: Tensor = VOLUMES, **options: Any) -> Maker:
    return made(lambda: _of("monai.networks.nets", name, **options), inputs)


_UNET = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": (4, 8), "strides": (2,)}
_KERNELS = {"kernel_size": [3] * 3, "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [4, 8, 8]}
MONAI: dict[str, Maker] = {
    "UNet": _monai("UNet", **_UNET, num_res_units=1),
    "AttentionUnet": _monai("AttentionUnet", **_UNET),
    "SegResNet": _monai("SegResNet", init_filters=8),
    "DynUNet": _monai("DynUNet", spatial_dims=3, in_channels=1, out_channels=2, **_KERNELS),
    "VNet": _monai("VNet", in_channels=1, out_channels=2),
    "UNETR": _monai(
        "UNETR", in_channels=1, out_channels=2, img_size=(16, 16, 16), feature_size=4, hidden_size=16, mlp_dim=24,
        num_heads=2,
    ),
    "DenseNet": _monai(
        "DenseNet", spatial_dims=3, in_channels=1, out_channels=2, init_features=4, growth_rate=4, block_config=(2, 2)
    ),
    "ViT": _monai(
        "ViT", in_channels=1, img_size=(16, 16, 16), patch_size=(8, 8, 8), hidden_size=16, mlp_dim=24, num_layers=2,
        num_heads=2, classification=True,
    ),
}  # fmt: skip


class _Segmenter(nn.Module):
    """Segment Anything without its steps of data: one image, one point."""

    def __init__(self) -> None:
        super().__init__()
        parts = import_module("segment_anything.modeling")
        layers = parts.TwoWayTransformer(depth=2, embedding_dim=16, num_heads=2, mlp_dim=24)
        self.encoder = parts.ImageEncoderViT(
            img_size=64, embed_dim=16, depth=2, num_heads=2, out_chans=16, use_rel_pos=True, window_size=2,
            global_attn_indexes=(1,),
        )  # fmt: skip
        self.prompts = parts.PromptEncoder(16, (4, 4), (64, 64), 8)
        self.decoder = parts.MaskDecoder(transformer_dim=16, transformer=layers)

    def forward(self, image: Tensor) -> Tensor:
        """Return the masks for a point."""
        points = torch.tensor([[[20.0, 30.0]]], dtype=image.dtype), torch.ones(1, 1, dtype=torch.long)
        sparse, dense = self.prompts(points, None, None)
        places = self.prompts.get_dense_pe()
        masks, _ = self.decoder(self.encoder(image), places, sparse, dense, multimask_output=True)
        return masks


SEGMENT_ANYTHING: dict[str, Maker] = {"SAM": made(_Segmenter, numbers(1, 3, 64, 64), lambda y: y[:, 1, 8, 8])}


def _clip(vision: dict[str, Any]) -> Maker:
    text = {"context_length": 6, "vocab_size": 9, "width": 16, "heads": 2, "layers": 2}
    build = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}
    ids = torch.tensor([[1, 4, 3, 8, 0, 0], [1, 2, 5, 7, 8, 0]])
    return made(lambda: _of("open_clip.model", "CLIP", **build), (IMAGES, ids), lambda y: (y[0] * y[1]).sum(1))


OPEN_CLIP: dict[str, Maker] = {
    "ViT": _clip({"image_size": 32, "patch_size": 16, "width": 16, "head_width": 8, "layers": 2}),
    "ResNet": _clip({"image_size": 32, "layers": (1, 1, 1, 1), "width": 8, "head_width": 8}),
}
_VIT = {"image_size": 32, "patch_size": 16, "num_classes": 4, "dim": 16, "depth": 2, "heads": 2, "mlp_dim": 24}
VIT_PYTORCH: dict[str, Maker] = {
    "ViT": made(lambda: _of("vit_pytorch", "ViT", **_VIT), IMAGES),
    "SimpleViT": made(lambda: _of("vit_pytorch", "SimpleViT", **_VIT), IMAGES),
    "CaiT": made(lambda: _of("vit_pytorch.cait", "CaiT", **_VIT, cls_depth=1), IMAGES),
    "DeepViT": made(lambda: _of("vit_pytorch.deepvit", "DeepViT", **_VIT), IMAGES),
    "MaxViT": made(
        lambda: _of(
            "vit_pytorch.max_vit", "MaxViT", num_classes=4, dim=16, dim_head=8, depth=(1, 1), window_size=4,
            dim_conv_stem=8,
        ),
        numbers(2, 3, 32, 32),
    ),
}  # fmt: skip
EFFICIENTNET: dict[str, Maker] = {
    "EfficientNet-B0": made(
        lambda: import_module("efficientnet_pytorch").EfficientNet.from_name("efficientnet-b0", num_classes=4),
        numbers(2, 3, 64, 64),
    )
}
PERCEIVER: dict[str, Maker] = {
    "Perceiver": made(
        lambda: _of(
            "perceiver_pytorch", "Perceiver", num_freq_bands=2, max_freq=4.0, depth=2, num_latents=4, latent_dim=8,
            latent_heads=2, cross_dim_head=4, latent_dim_head=4, num_classes=3,
        ),
        numbers(2, 8, 8, 3),
    )
}  # fmt: skip
_LENGTHS = torch.tensor([20, 14])
TORCHAUDIO: dict[str, Maker] = {
    "Conformer": made(
        lambda: _of(
            "torchaudio.models", "Conformer", input_dim=8, num_heads=2, ffn_dim=12, num_layers=2,
            depthwise_conv_kernel_size=5,
        ),
        (numbers(2, 20, 8), _LENGTHS),
    ),
    "DeepSpeech": made(
        lambda: _of("torchaudio.models", "DeepSpeech", n_feature=8, n_hidden=12, n_class=5), numbers(2, 1, 20, 8)
    ),
    "ConvTasNet": made(
        lambda: _of(
            "torchaudio.models", "ConvTasNet", enc_num_feats=8, msk_num_feats=8, msk_num_hidden_feats=8,
            msk_num_layers=2, msk_num_stacks=1,
        ),
        WAVES,
    ),
    "Emformer": made(
        lambda: _of(
            "torchaudio.models", "Emformer", input_dim=8, num_heads=2, ffn_dim=12, num_layers=2, segment_length=4,
            right_context_length=1,
        ),
        (numbers(2, 21, 8), _LENGTHS),
    ),
    "Wav2Letter": made(lambda: _of("torchaudio.models", "Wav2Letter", num_classes=5), numbers(1, 1, 8000)),
    "wav2vec 2.0": made(
        lambda: import_module("torchaudio.models").wav2vec2_model(
            "layer_norm", [(8, 10, 5), (8, 3, 2)], True, 16, 0.0, 5, 2, 2, 2, 0.0, 24, 0.0, 0.0, True, 0.0, 5
        ),
        numbers(2, 400),
    ),
}  # fmt: skip
ASTEROID: dict[str, Maker] = {
    "ConvTasNet": made(
        lambda: _of(
            "asteroid.models", "ConvTasNet", n_src=2, n_blocks=2, n_repeats=1, bn_chan=8, hid_chan=8, skip_chan=8,
            n_filters=8,
        ),
        WAVES,
    ),
    "DPRNNTasNet": made(
        lambda: _of(
            "asteroid.models", "DPRNNTasNet", n_src=2, bn_chan=8, hid_size=6, chunk_size=10, n_repeats=1, n_filters=8
        ),
        WAVES,
    ),
    "SuDORMRFNet": made(
        lambda: _of("asteroid.models", "SuDORMRFNet", n_src=2, bn_chan=8, num_blocks=1, upsampling_depth=2),
        WAVES,
    ),
}  # fmt: skip
ENCODEC: dict[str, Maker] = {
    "encoder and decoder": made(lambda: _codec(), numbers(1, 1, 640), lambda y: first(y).flatten(1)[:, 100]),
}


def _codec() -> nn.Module:
    parts = import_module("encodec.modules")
    sizes = {"channels": 1, "dimension": 8, "n_filters": 4, "ratios": [4, 2], "n_residual_layers": 1}
    return nn.Sequential(parts.SEANetEncoder(**sizes), parts.SEANetDecoder(**sizes))
