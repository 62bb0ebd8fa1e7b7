"""The version, in one place: packaging and the run record both read it here."""

__version__ = "0.1.0"
