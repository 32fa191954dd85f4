"""Autograd functions, saved values, tensors in containers, autograd nodes and numerics, for rules."""
