"""The thin chain ((x L) U) R, whose outer factors are stored or regenerated from seeds."""
