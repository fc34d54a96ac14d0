"""One thin module per stage: open a scope, call one use case, report, send what follows."""
