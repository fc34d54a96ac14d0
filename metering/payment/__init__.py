"""What payment providers are asked and say, and the facts that the ledger follows."""
