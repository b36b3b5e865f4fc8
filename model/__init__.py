"""What serving and training must agree on: network, encode/decode, letterbox and metadata."""
