"""Slipway: container images built without servers to keep.

The modules, from the outside inwards; the arrow is app -> usecases -> domain (tests/test_architecture.py):

    app.py        every route and trigger
    web           tokens, bodies, pages and the error -> HTTP table
    page          the files of the browser's page, the command line and the API's document, as `ui/` has them
    serializers   domain -> JSON, by the types in `schemas`, of which infra/openapi.py makes the document
    usecases/     one function per thing that can happen; sees the outside only through `ports`
    ports         what use cases ask of the outside;  errors  what can go wrong, without HTTP
    domain/       the rules: builds, statuses, specs, Dockerfiles; pure
    adapters/     DynamoDB, SQS, CodeBuild, EKS, CloudWatch, S3, registries: the ports made real;
                  `steps` are the shell scripts that a build runs
    telemetry     log lines, metrics and traces
    wiring        makes the real adapters;  settings  the only reader of the environment
"""
