"""Meters and prices: which events cost what, since when."""
