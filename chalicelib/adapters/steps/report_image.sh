#!/bin/sh
# report_image: an image counts only with this report
sh "$SLIPWAY_MEMORY/ask" _report "digest=$(cat "$SLIPWAY_MEMORY/digest")"
