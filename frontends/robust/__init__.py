"""Robust training: a network learns margins that hold for all inputs around each sample (chapter 6)."""
