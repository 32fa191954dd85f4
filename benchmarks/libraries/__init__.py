"""Small models of libraries that people use, for benchmarks/zoo_libraries.py; each is imported where it is made."""
