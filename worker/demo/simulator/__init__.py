"""The part of Stripe's API that Gullak uses, as a process of its own that charges nobody."""
