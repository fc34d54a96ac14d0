"""Where events are: found by id, listed, walked; refused events; partitions."""
