"""What all benchmarks share: rows to time on, correct answers, interleaved timing, and records, tables, plots and bars.

machine.py, records.py, table.py, plot.py and bars.py turn records, which each benchmark defines, into one CSV file,
one table, one plot and a verdict per bar.
"""
