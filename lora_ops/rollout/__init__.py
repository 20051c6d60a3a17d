"""Routes: shadow, canary, promotion and rollback of a version, as data."""
