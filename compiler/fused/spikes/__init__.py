"""Layers whose input is spikes: bits instead of numbers, look-ups and events instead of products."""
