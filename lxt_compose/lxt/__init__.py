"""LXT's names: drop-in functions, modules and rules."""
