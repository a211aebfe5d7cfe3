"""Slipway: builds container images without servers to run.

The modules, from the outside inwards; imports point app -> usecases -> domain (tests/test_architecture.py):

    app.py        every route and trigger
    web           tokens, bodies, pages and the error -> HTTP table
    page          serves the files of `ui/`: the browser's page, the command line and the API's document
    serializers   domain -> JSON, as types of `schemas`; from these infra/openapi.py makes the document
    usecases/     one function per operation; uses the outside world only through `ports`
    ports         interfaces to the outside world;  errors  domain errors, without HTTP
    domain/       the rules: builds, statuses, specs, Dockerfiles; pure
    adapters/     DynamoDB, SQS, CodeBuild, EKS, CloudWatch, S3, registries: implementations of ports;
                  `steps` are the shell scripts that a build runs
    telemetry     log lines, metrics and traces
    wiring        makes the real adapters;  settings  the only reader of the environment
"""
