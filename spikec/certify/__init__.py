"""Certification of networks over data sets: what `spikec certify` does."""
