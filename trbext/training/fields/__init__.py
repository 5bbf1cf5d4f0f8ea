"""The fields of `TRBConfig` by subject, and their checks."""
