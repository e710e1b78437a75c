"""The ``rsmamba`` command: one module per verb."""
