"""A payment provider for tests and the demo: a process of its own that charges nobody."""
