"""Steps for 2D images."""
