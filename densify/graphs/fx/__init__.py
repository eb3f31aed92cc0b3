"""torch.fx: trace.py traces a model, read.py and readers read its nodes; write.py, dilated.py, fragments.py write one.

A reader for another op goes into readers/, found through registry.py; a writer for a new kind of op into write.py.
"""
