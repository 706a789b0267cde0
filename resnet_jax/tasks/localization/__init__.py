"""Localization: the class of an image's main object, and a box around it (appendix C)."""
