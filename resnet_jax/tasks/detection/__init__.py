"""Object detection: Faster R-CNN on the networks of the paper (appendices A and B)."""
