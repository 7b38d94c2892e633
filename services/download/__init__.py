"""Models: sources, transfers, verification, catalogue."""
