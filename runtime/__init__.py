"""Shared ground floor of all packages: files, threads, environment records, logs and tables."""
