"""Serve every tenant's adapter from one base model."""
