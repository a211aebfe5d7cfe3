"""Slipway: container images built without servers to keep.

A walk through the house, from the front door inwards:

    app.py        every route and trigger
    web           tokens, bodies, pages and the error -> HTTP table
    serializers   domain -> JSON, by the types in `schemas`, of which `openapi` tells the world
    usecases/     one function per thing that can happen; sees the outside only through `ports`
    domain/       the rules: builds, statuses, specs, Dockerfiles; pure
    adapters/     DynamoDB, SQS, CodeBuild, EKS, CloudWatch, S3, registries: the ports made real;
                  `steps` are the shell scripts that a build runs
    telemetry     what those who run it see: log, metrics, traces
    wiring        the one place that knows both sides;  settings  the only reader of the environment
"""
