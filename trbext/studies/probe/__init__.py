"""`trb probe`: what TRB's rollouts are worth before any training, by KL budget.

rollouts.py      rollouts of two models at a budget, cut at a length, continued by either model, judged
statistics.py    shares with Wilson intervals, paired differences, AUROC
figure.py command.py   the figure, the JSON, the command
"""
