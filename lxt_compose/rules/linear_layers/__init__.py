"""Layers ``W x + b``: finding them, and multiplying with parts of their weights, for split rules."""
