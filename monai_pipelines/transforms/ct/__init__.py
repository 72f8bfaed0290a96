"""Steps for chest CTs."""
