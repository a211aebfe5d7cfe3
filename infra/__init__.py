"""What is deployed (`aws/`) and the one-machine stack (`local/`)."""
