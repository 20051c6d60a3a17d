"""The HTTP endpoints of the gateway, by who asks."""
