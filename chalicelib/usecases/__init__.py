"""One function per thing that can happen. First argument: the services it may use."""
