"""Measures, before any training, how often prefixes of TRB's rollouts lead to right completions: `trb probe`.

rollouts.py    rolls out at a KL budget, cuts at a length, lets either model continue, judges
intervals.py   estimates shares (Wilson intervals), paired differences and the AUROC
figure.py      plots the figure
command.py     measures all budgets and lengths, writes the JSON, prints
"""
