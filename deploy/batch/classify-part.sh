#!/bin/sh
# Classifies every SHARDS-th video of a manifest, from number JOB_COMPLETION_INDEX (0 to SHARDS - 1) on. Whatever ends it,
# the next run of the same part goes on after the last answer.
# KINETOSCOPE_SERVER names the server, MANIFEST the list of videos (paths or URIs, one a line), ANSWERS a directory.
set -eu
part=$(mktemp)
split --number="r/$((JOB_COMPLETION_INDEX + 1))/$SHARDS" "$MANIFEST" >"$part"
mkdir -p "$ANSWERS"
exec kinetoscope classify --from "$part" --output "$ANSWERS/part-$JOB_COMPLETION_INDEX.jsonl" --resume
