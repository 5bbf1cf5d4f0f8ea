"""Has the hydra group `trb`, which turns a configuration of verl into one of a run with TRB.

verl's command finds it by `hydra.searchpath=[pkg://trbext.verl.config] +trb=trb`; the other choices are `fixed` and
`opd`.
"""
