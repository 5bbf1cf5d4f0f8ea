"""Checks the operators on random rows, each answer against float64: `python -m python_tests.fuzz`."""
