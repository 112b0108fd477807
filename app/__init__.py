"""Apps: what a program declares, its settings, and how it is run."""
