"""From a checkpoint to an ONNX file: float32, float16 or int8."""
