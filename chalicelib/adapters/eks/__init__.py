"""Builds as Kubernetes Jobs on an EKS cluster.

| module        | what                                                        |
|---------------|-------------------------------------------------------------|
| `job`         | the objects: a build's Job and its Secret; pure functions   |
| `observation` | what a Job and its pod say of a build; pure functions       |
| `executor`    | `ports.Executor`: creates, lists and deletes the objects    |
| `api`         | the HTTP client of a cluster's API                          |
"""
