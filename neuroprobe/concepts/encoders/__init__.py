"""Image-text encoders: a file for each kind, which registers itself."""
