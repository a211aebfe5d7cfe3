#!/bin/sh
# end_of_log: prints the line that marks the end of the log
printf 'slipway-end %s\n' "$SLIPWAY_NONCE"
