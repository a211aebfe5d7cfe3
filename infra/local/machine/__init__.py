"""What builds need of this machine: an engine, an image to start from, a registry to push to."""
