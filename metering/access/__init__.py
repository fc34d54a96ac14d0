"""Who may ask: API keys of businesses and what each may do."""
