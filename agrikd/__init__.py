"""agrikd: large teachers, small students, small plant datasets."""

__version__ = "0.1.0"
