"""Unsupervised training of one layer by spike timing-dependent plasticity, the rule that BPTT is measured against."""
