"""The whole stack on one machine: embedded servers and a supervisor."""
