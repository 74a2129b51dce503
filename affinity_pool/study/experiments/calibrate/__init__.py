"""Sites, thresholds and windows for a budget, found from recordings without texts."""
