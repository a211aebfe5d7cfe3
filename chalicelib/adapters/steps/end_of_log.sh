#!/bin/sh
# end_of_log: by this line a reader of the log knows that nothing follows
printf 'slipway-end %s\n' "$SLIPWAY_NONCE"
