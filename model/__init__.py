"""What serving and training must agree on: network, encode/decode, letterbox and metadata."""

import os

# ONNX Runtime 1.31 reports to its maker from its import on, and writes an id to the home directory, unless told before
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
