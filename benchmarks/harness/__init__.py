"""Holds what all benchmarks share: rows of logits, correct answers, interleaved timing, records, tables, plots, bars.

machine.py, records.py, table.py, plot.py and bars.py turn records, which each benchmark defines, into one CSV file,
one table, one plot and a verdict per bar.
"""
