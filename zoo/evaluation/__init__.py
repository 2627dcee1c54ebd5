"""``tools/evaluate.py``: from clips, or a model, to Tables 1 and 2 of the music RLHF paper."""
