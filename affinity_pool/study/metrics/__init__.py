"""How right an answer is."""
