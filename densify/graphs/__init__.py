"""Readers and writers of graphs: what stands between a framework's nodes and the rules."""
