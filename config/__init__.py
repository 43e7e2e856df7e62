"""Settings (what may be changed from outside) and the model catalogue (data, not code)."""
