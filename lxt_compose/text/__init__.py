"""Text for terminals and tables: folding of names and paths, columns of a given width."""
