"""The whole stack on one machine: moto, a CodeBuild that really builds, and what wakes the handlers."""
