"""Adversarial examples that keep an input's form: binary spikes, or intensities in [0, 1] (chapter 5)."""

from compiler.attack.iterate import attack
from compiler.attack.perturbation import Perturbation, perturbation
from compiler.attack.settings import Case, Outcome, Settings, Status
from compiler.attack.victim import Victim, penultimate

__all__ = [
    "Case",
    "Outcome",
    "Perturbation",
    "Settings",
    "Status",
    "Victim",
    "attack",
    "penultimate",
    "perturbation",
]
