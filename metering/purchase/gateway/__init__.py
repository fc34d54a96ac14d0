"""Payment providers, as charges see them."""
