"""What the stages hand to each other on disk: hashed safetensors files under an index (docs/formats.md)."""
