"""The HTTP edge: the wire format over the use cases of `metering`."""
