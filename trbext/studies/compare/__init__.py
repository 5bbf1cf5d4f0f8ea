"""`trb compare`: runs that differ in one thing each, over seeds, and what can be said of their differences.

grid.py      what a study is: its YAML, checked before anything runs
study.py     all runs, in worker processes, resumable; worker.py is one of them
results.py   what the runs measured
statistics.py  views of a run, paired differences, intervals, corrected p-values
wording.py   the same in sentences
figures.py page.py   curves and contrasts; one HTML page
"""
