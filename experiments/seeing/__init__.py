"""Measurements and pictures of what a trained network has learnt, one small module each."""
