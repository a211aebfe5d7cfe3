#!/bin/sh
# mask: copies its input, with *** instead of each line of a secret, by the sed script $1 of the materials (default:
# `masks`). Masking happens here, where the values are anyway: so no log contains them, and no function that reads
# logs needs them.
masks=$SLIPWAY_MEMORY/${1:-masks}
[ -s "$masks" ] || exec cat
unbuffered=
if sed -u '' </dev/null 2>/dev/null; then unbuffered=-u; fi # busybox has no -u: its output waits for 4 KB
LC_ALL=C exec sed $unbuffered -f "$masks"
