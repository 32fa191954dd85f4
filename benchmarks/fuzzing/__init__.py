"""Random models, random composites, and what must hold for all of them; run by ``benchmarks/fuzz.py``."""
