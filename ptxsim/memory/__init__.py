"""Holds the memory of a device, global and shared: checks and counts each access, and finds races."""
