"""Redis: append, read the head, trim after the commit. `keys.py` is the glossary of every key."""
