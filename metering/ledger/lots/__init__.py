"""Credit in lots: bought at a time, burned in an order, gone at an end."""
