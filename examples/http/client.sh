#!/bin/sh
# Ask a server for recommendations, and for the probabilities of some items, with curl.
set -eu
server="${1:-http://localhost:8080}" user="${2:-u17}"
ask() { curl --silent --show-error --fail-with-body -H 'content-type: application/json' "$server$1" -d "$2"; echo; }

ask /recommend "{\"user\": \"$user\", \"k\": 5}"
ask /rank "{\"user\": \"$user\", \"items\": [\"i42\", \"i43\"]}"
