#!/bin/sh
# end_of_log: whoever reads the log knows by this line that nothing follows
printf 'slipway-end %s\n' "$SLIPWAY_NONCE"
