"""Adversarial examples that keep an input's form: binary spikes, or intensities in [0, 1] (chapter 5)."""

from compiler.attack.budget import Budget, Norm
from compiler.attack.iterate import attack
from compiler.attack.perturbation import Perturbation, perturbation
from compiler.attack.settings import Case, Flow, Outcome, Settings, Status
from compiler.attack.victim import Victim, penultimate

__all__ = [
    "Budget",
    "Case",
    "Flow",
    "Norm",
    "Outcome",
    "Perturbation",
    "Settings",
    "Status",
    "Victim",
    "attack",
    "penultimate",
    "perturbation",
]
