"""What adapters cost: who used what, what is paid for it, and what nobody needs."""
