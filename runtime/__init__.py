"""Things that execute: the simulated machine and its sessions."""
