"""Autograd functions, saved values, tensors in containers, nodes and numerics: what rules are made of."""
