#!/bin/sh
# Send actions with kcat: a tab divides the key (the user) from the value, and murmur2 has to be asked for.
set -eu
bootstrap="${1:-localhost:29092}" topic="${2:-headrace.actions.v1}"
now="$(date +%s)000"
{
    printf 'u17\t{"user": "u17", "item": "i42", "action": "click", "timestamp": %s}\n' "$now"
    printf '5\t{"user": 5, "item": 42, "action": ["click", "like"], "timestamp": %s, "value": 4.5, "id": "%s"}\n' \
        "$now" "$(cat /proc/sys/kernel/random/uuid)"
    printf 'zoë\t[{"user": "zoë", "item": "i42", "action": "impression", "timestamp": %s},' "$now"
    printf ' {"user": "zoë", "item": "i43", "action": "impression", "timestamp": %s}]\n' "$now"
} | kcat -P -b "$bootstrap" -t "$topic" -K '\t' -X topic.partitioner=murmur2 -X acks=all
