"""The whole stack on one machine: `machine` builds and stores images, `codebuild` and `cluster` run builds.

`aws` serves DynamoDB, SQS, S3 and Logs, and `gateway` the API; `triggers` invokes other functions; `stack`
starts everything.
"""
