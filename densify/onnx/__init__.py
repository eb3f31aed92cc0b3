"""ONNX files: exported from torch, read, made dense as graphs, run in ONNX Runtime, and written."""
