"""The ports made real, one product per module. SDK errors stop here, with their cause kept."""
