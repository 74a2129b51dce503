"""How alike audio tokens are, layer by layer."""
