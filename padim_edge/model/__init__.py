"""Model: the two files, embedding.onnx and padim.onnx, and the graph within them."""
