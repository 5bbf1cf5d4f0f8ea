"""Random rows through the operators, each answer checked against float64: `python -m python_tests.fuzz`."""
