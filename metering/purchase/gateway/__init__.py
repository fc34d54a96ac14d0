"""Payment providers: one protocol, an adapter for each."""
