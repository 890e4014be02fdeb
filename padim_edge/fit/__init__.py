"""Fit: from embedding.onnx and good images to padim.onnx, without torch."""
