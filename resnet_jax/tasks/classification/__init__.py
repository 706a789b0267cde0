"""Classification: metrics, scores and inference."""
