"""ONNX graphs: what is known of their values, one reader and one writer per kind of op."""
