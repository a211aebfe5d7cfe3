"""One function per operation. The first argument are the services that it may use."""
