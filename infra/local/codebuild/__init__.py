"""AWS CodeBuild: its API, and builds that run as processes of this machine."""
