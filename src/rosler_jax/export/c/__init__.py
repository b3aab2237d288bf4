"""The C target: plain C99 with the model as constant data."""
