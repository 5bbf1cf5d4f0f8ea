"""`trb probe`: measures, before any training, how often prefixes of TRB's rollouts lead to right completions.

rollouts.py    rolls out at a KL budget, cuts at a length, has either model continue, judges
intervals.py   shares with Wilson intervals, paired differences, AUROC
figure.py      draws the figure
command.py     measures all budgets and lengths, writes the JSON, prints
"""
