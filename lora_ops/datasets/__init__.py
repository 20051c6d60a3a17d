"""From a tenant's source to prompts and answers in splits that share nothing, under a contract."""
