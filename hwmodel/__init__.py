"""The hardware as data and formulas: configuration, instruction set, programs, checks and timing."""
