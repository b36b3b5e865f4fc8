"""CenterNet in PyTorch, and its graph in ONNX; serving never imports it."""
