"""What payment providers say: their accounts, their webhooks, and the facts that those hold."""
