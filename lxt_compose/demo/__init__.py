"""A demonstration on real scans of digits: two small networks are trained, explained, and drawn side by side."""

from .main import DemoResult, run_demo

__all__ = ["DemoResult", "run_demo"]
