"""XLA: compiler options, caches, compilation targets, and reading compiled programs."""
