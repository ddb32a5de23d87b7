"""Draws data/wild, the held-out images: by Chromium and TeX, in layouts and typefaces that no training image has."""
