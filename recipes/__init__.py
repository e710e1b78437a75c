"""Commented YAML recipes; installed as the data package ``rsmamba.recipes``."""
