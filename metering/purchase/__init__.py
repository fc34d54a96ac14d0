"""Paid credit in: a paid order credits its wallet once, whatever is redelivered."""
