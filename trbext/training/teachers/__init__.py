"""Loads, places, routes and reads the teacher of a run, whatever it is."""
