"""A Kubernetes cluster: its API, and one node that runs Jobs as processes of this machine."""
