"""What else than the reverse KL to the teacher supervises a token: the losses of other methods, formula by formula."""
