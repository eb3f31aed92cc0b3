"""torch.fx: trace a model (trace.py), read its nodes (read.py), write the rewritten ones (write.py)."""
