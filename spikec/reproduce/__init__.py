"""Chapter 3 of the dissertation beside the model: every published number, ours, and what ours rests on."""
