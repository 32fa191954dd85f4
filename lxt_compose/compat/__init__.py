"""Adapters to other libraries: attributions as Captum, Quantus and SHAP take them, composites as Zennit writes them."""

from . import zennit
from .captum import captum_lrp
from .quantus import quantus_explain
from .shap import shap_explanation

__all__ = ["captum_lrp", "quantus_explain", "shap_explanation", "zennit"]
