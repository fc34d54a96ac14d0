"""Lots: portions of credit that are consumed in an order and may expire."""
