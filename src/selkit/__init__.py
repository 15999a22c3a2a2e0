"""selkit."""
