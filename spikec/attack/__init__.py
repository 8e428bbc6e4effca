"""What `spikec attack` does: cases, the run, its results file, the replay, the report and the figures."""
