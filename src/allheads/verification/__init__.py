"""Is the twin the model? Measurements beside certified bounds, and a verdict that can be no."""
