"""More than one run: `trb compare`, `trb probe` and `trb demo`."""
