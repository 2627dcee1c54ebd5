"""Statistics of generated audio: pure functions."""
