"""Holds the losses of other methods, formula by formula."""
