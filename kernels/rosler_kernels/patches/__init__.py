"""Projection of a convolution's patches, which are never gathered into one array."""
