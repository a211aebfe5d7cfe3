#!/bin/bash
# log_in: a failed login ends the build here, and its log names the registry
(
  refused() { printf 'ERROR: the login to %s failed\n' "$1"; exit 1; }
  if [ -n "${SLIPWAY_ECR_HOST:-}" ]; then
    password=$(aws ecr get-login-password) || refused "$SLIPWAY_ECR_HOST"
    printf '%s' "$password" |
      docker login --username AWS --password-stdin "$SLIPWAY_ECR_HOST" || refused "$SLIPWAY_ECR_HOST"
  fi
  if [ -n "${SLIPWAY_DOCKER_HUB_TOKEN:-}" ]; then
    printf '%s' "$SLIPWAY_DOCKER_HUB_TOKEN" |
      docker login --username "${SLIPWAY_DOCKER_HUB_USERNAME:-}" --password-stdin || refused 'Docker Hub'
  fi
)
