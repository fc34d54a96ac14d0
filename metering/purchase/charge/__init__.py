"""Money asked for: charges, checkouts that are paid for in part by credit, automatic top-ups."""
