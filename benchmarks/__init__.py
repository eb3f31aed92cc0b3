"""Measurements that are run by hand, and what makes their tables."""
