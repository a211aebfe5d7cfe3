"""What is deployed: resources beside the functions, the package, and the first superuser."""
