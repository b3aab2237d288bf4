"""X Omega and Y Omega^T from a sketch's seed."""
