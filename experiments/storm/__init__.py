"""A storm: runs that are killed, stopped, requeued, doubled and changed at random moments, and must lose nothing."""
