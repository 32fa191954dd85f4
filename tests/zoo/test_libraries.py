"""Models of libraries that people use, against the libraries themselves: a part of ``benchmarks/zoo_libraries.py``.

What was found there stands as tests without the libraries, in ``tests/runtime/test_custom_functions.py`` and
``tests/runtime/test_graph_layers.py``.
"""

import pytest
from zoo_libraries import LIBRARIES, is_right, judge, version_of

QUICK = {
    "torch_geometric": ("GCN", "GraphSAGE", "GIN", "GAT", "TransformerConv"),
    "pytorch-tabnet": ("TabNet, sparsemax", "TabNet, entmax"),
    "mambapy": ("Mamba, parallel scan",),
    "rtdl-revisiting-models": ("ResNet", "FTTransformer"),
    "tabm": ("tabm",),
    "ultralytics": ("yolo11n", "yolov8n-pose"),
    "pytorch-forecasting": ("TemporalFusionTransformer", "DeepAR, GRU"),
    "speechbrain": ("ECAPA-TDNN, lengths", "Conformer"),
    "sentence-transformers": ("SentenceTransformer, mean", "SentenceTransformer, weightedmean"),
    "diffusers": ("UNet2DModel", "DiTTransformer2DModel"),
    "segmentation-models-pytorch": ("Unet",),
    "torchvision": ("lraspp_mobilenet_v3_large",),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("library", "name"), [(library, name) for library, names in QUICK.items() for name in names])
def test_models_of_libraries_are_explained_whole(library, name):
    if not version_of(library):
        pytest.skip(f"{library} is not installed")
    found = judge(LIBRARIES[library][name])
    if "No module named" in found["why"] or "operator torchvision" in found["why"]:
        pytest.skip(f"{library} lacks what it needs: {found['why']}")
    assert is_right(found), found


def test_a_library_that_is_not_installed_is_told_from_one_that_is():
    assert version_of("torch")
    assert version_of("no_such_library") == ""
