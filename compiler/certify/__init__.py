"""Certificates: whether any input of a set makes a network decide otherwise (chapter 6)."""
