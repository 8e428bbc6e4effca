"""Event data: recordings of event cameras in a user's folder, and synthetic events made from images."""

from frontends.events.loader import EVENT_SETS, load_recordings
from frontends.events.saccades import load_saccades

__all__ = ["EVENT_SETS", "load_recordings", "load_saccades"]
