"""The parts of ``benchmarks/accelerator.py``, each a program of its own with a time limit."""
