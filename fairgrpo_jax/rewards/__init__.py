"""Text to score: each module turns completions and reference answers into rewards, in plain NumPy."""
