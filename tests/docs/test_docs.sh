#!/usr/bin/env bash
# What README.md and docs/ say about the tree is true: files, make targets, settings, messages, and the C example runs.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
build=${KVF_BUILD:-}
[ -n "$build" ] || { echo "KVF_BUILD does not name the build folder"; exit 77; }
[ -e "$build/libkvf.so" ] || { echo "no $build/libkvf.so"; exit 77; }

folder=$(mktemp -d "${TMPDIR:-/tmp}/kvf-docs-XXXXXX")
trap 'rm -rf "$folder"' EXIT
failed=0
wrong() { echo "$*"; failed=1; }

documents=(README.md docs/*.md bench/README.md)
rooms='base|kernels|fabric|tiers|coordinator|node|cli|bench|examples|tests|deploy|docs|include'

# Paths: what stands in `...` or is the target of a link, below one of our folders. build/ is what make leaves.
for document in "${documents[@]}"; do
  while read -r path; do
    [ -e "$path" ] || wrong "$document names $path, which is not there"
  done < <(grep -oE "\`($rooms)/[A-Za-z0-9_./-]*" "$document" | tr -d '`' | sort -u)
  while read -r path; do
    [ -e "$(dirname "$document")/$path" ] || wrong "$document links to $path, which is not there"
  done < <(grep -oE '\]\([^)#:]+' "$document" | cut -c3- | sort -u)
  while read -r anchor; do
    target=${anchor%%#*} heading=${anchor#*#}
    file=$(dirname "$document")/$target
    [ -n "$target" ] || file=$document
    grep -E '^#+ ' "$file" | sed -E 's/^#+ //' | tr 'A-Z ' 'a-z-' | tr -cd 'a-z0-9_\n-' | grep -qx -- "$heading" ||
      wrong "$document links to a heading that is not there: $anchor"
  done < <(grep -oE '\]\([^):]*#[^)]+' "$document" | cut -c3- | sort -u)
  grep -nE '/(work|root|home)/' "$document" && wrong "$document names a folder of one machine"
done

# Make targets: after `make ` in code. Options (NAME=value) are none.
for document in "${documents[@]}"; do
  while read -r target; do
    grep -qE "^([a-z ]+ )?$target( [a-z ]+)?:" Makefile || wrong "$document names make $target, which is no target"
  done < <(grep -oE '(`|^)make [a-z]+' "$document" | sed 's/.*make //' | sort -u)
done
while read -r option; do
  grep -qE "^#: .*\b$option=" Makefile || grep -qE "\\$\\($option\\)" Makefile ||
    wrong "README.md names $option=, which the Makefile does not know"
done < <(sed -n '/^## Building/,/^## The folders/p' README.md | grep -oE '\b[A-Z]+=' | tr -d '=' | sort -u)

# Settings: `room.name` in code, or --set room.name=.
groups='node|cluster|dram|memory|lend|fetch|attend|block|session|ssd|fabric|etcd|admin|reactor|log'
while read -r name; do
  grep -qF "\"$name\"" base/config_table.h || wrong "the documents name the setting $name, which is none"
done < <(grep -ohE "(\`|--set )($groups)\.[a-z_]+(\`|=)" "${documents[@]}" |
  sed -E 's/^(`|--set )//; s/[`=]$//' | grep -vE '\.(h|c|md)$' | sort -u)

# Messages of the node: names and numbers of the table against the enum.
awk '/KVF_MSG_RESERVE = KVF_MESSAGE_FIRST/ {on = 1; number = 32} on && match($0, /KVF_MSG_[A-Z_]+ = [0-9]+/) {
       number = substr($0, RSTART, RLENGTH); sub(/.*= /, "", number)}
     on && match($0, /KVF_MSG_[A-Z_]+/) {
       print number++, substr($0, RSTART + 8, RLENGTH - 8)} /^};/ {on = 0}' node/wire.h > "$folder/enum"
sed -nE "/^## The node's messages/,/^## /s/^\| ([0-9]+) \| ([A-Z_]+) \|.*/\1 \2/p" docs/PROTOCOL.md > "$folder/table"
[ -s "$folder/enum" ] || wrong "no messages were found in node/wire.h"
diff "$folder/enum" "$folder/table" || wrong "docs/PROTOCOL.md and node/wire.h list other messages (< the enum, > the table)"

# The fabric's own, likewise.
sed -nE 's/^ *KVF_WIRE_(HELLO|HEARTBEAT|GOODBYE|PULL|PULL_DATA|REPLY|PIECE|PIECE_ASK|PROOF|WELCOME) = ([0-9]+),.*/\2 \1/p' fabric/wire.h |
  tr 'A-Z_' 'a-z ' > "$folder/enum"
sed -nE "/^## The fabric's own/,/^## /s/^\| ([0-9]+) \| ([a-z ]+) \|.*/\1 \2/p" docs/PROTOCOL.md > "$folder/table"
[ -s "$folder/enum" ] || wrong "no types were found in fabric/wire.h"
diff "$folder/enum" "$folder/table" || wrong "docs/PROTOCOL.md and fabric/wire.h list other types (< the enum, > the table)"

# The example: one block, compiles without a warning, runs within 10 s.
[ "$(grep -c '^```c$' README.md)" = 1 ] || wrong "README.md does not have exactly one block of C"
awk '/^```c$/ {on = 1; next} /^```$/ {on = 0} on' README.md > "$folder/example.c"
case $build in
  *-address) san=-fsanitize=address,undefined ;;
  *-thread) san=-fsanitize=thread ;;
  *) san= ;;
esac
cp "$build/libkvf.so" "$folder/libkvf.so.0" && ln -s libkvf.so.0 "$folder/libkvf.so"
# shellcheck disable=SC2086
if gcc -std=c11 -Wall -Wextra -Werror $san -I include "$folder/example.c" -o "$folder/example" -L"$folder" -lkvf; then
  (cd "$folder" && LD_LIBRARY_PATH=$folder timeout 10 ./example) > "$folder/out" 2>&1
  code=$?
  [ $code = 0 ] || wrong "README's example ended with $code: $(head -c 2000 "$folder/out")"
  grep -q . "$folder/out" || wrong "README's example prints nothing"
else
  wrong "README's example does not compile"
fi
exit $failed
