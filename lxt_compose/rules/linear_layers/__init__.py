"""Layers ``W x + b``: found, and multiplied with parts of their weights. What split rules stand on."""
