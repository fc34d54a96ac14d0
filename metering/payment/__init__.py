"""Payment providers: charges, webhooks, and the facts that the ledger follows."""
