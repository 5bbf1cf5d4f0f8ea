"""Trains runs that differ in one thing each, over seeds, and reports their differences: `trb compare`.

From the study file to the page:

    declaration.py values.py folder_names.py   read and check the study file
    runner.py worker.py folder.py devices.py   train its runs, each in a process of its own, resumable
    measurements.py                            read what the runs measured
    views.py contrasts.py                      make one number of a run; compare runs within seeds
    findings.py                                hold all of these, computed once
    wording.py                                 put them in sentences
    console.py page.py figures.py results_csv.py   render them
    command.py                                 run and report
"""
