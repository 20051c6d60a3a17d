"""Which adapter versions exist, what is known of each, and which one an alias names."""
