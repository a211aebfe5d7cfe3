"""What requests and cold starts cost, and the emulators that this is measured on."""
