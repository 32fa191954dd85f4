"""A composite at work on a model: hooks, function mode, decisions, and what is known of each call."""

from .known_libraries import register_known

register_known()
