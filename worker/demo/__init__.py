"""`gullak demo`: the whole path on real parts, with processes killed, and an account at the end."""
