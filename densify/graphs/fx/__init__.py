"""torch.fx: trace.py traces a model, read.py and readers.py read its nodes, write.py and fragments.py write new ones.

A reader for another op goes into readers.py, found through registry.py; a writer for a new kind of op into write.py.
"""
