"""Classification: metrics, scores, and trained networks that answer with classes."""
