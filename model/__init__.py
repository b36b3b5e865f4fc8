"""Code that serving and training share: network, encoding and decoding, letterbox, metadata, ONNX sessions."""

import os

# unless set before its import, ONNX Runtime 1.31 sends telemetry and writes an id to the home directory
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
