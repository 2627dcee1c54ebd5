"""Statistics about scores of generated audio: pure functions."""
