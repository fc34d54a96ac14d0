"""API keys of businesses, and what each of them may do."""
