#!/usr/bin/env bash
# make install into an empty folder: everything is there, and README's C example compiles against it by pkg-config.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=${KVF_BUILD:-build}
case $build in *-address|*-thread) echo "the installed library would need the sanitizer"; exit 77;; esac
[ -e "$build/libkvf.so" ] || { echo "no $build/libkvf.so"; exit 77; }

folder=$(mktemp -d "${TMPDIR:-/tmp}/kvf-install-XXXXXX")
trap 'rm -rf "$folder"' EXIT
make --no-print-directory install B="$build" DESTDIR="$folder/root" PREFIX=/opt/kvf > "$folder/log" 2>&1 ||
  { cat "$folder/log"; exit 1; }
root=$folder/root/opt/kvf
for file in bin/kvf bin/kvfd bin/kvfcoord lib/libkvf.a lib/libkvf.so lib/libkvf.so.0 lib/pkgconfig/kvf.pc include/kvf/kvf.h; do
  [ -s "$root/$file" ] || { echo "$file was not installed"; exit 1; }
done
"$root/bin/kvf" --version

# Nothing but what kvf.h declares is exported.
extra=$(nm -D --defined-only "$root/lib/libkvf.so" | awk '{print $3}' | grep -v '^kvf_' | grep -v '^_' || true)
[ -z "$extra" ] || { echo "symbols beyond kvf.h are exported: $extra"; exit 1; }
for name in $(nm -D --defined-only "$root/lib/libkvf.so" | awk '$2 == "T" {print $3}'); do
  grep -q "\b$name(" "$root/include/kvf/kvf.h" || { echo "$name is exported and not in kvf.h"; exit 1; }
done
for name in $(grep -o '\bkvf_[a-z_]*(' include/kvf/kvf.h | tr -d '(' | sort -u); do
  grep -q "KVF_API .*\b$name(" include/kvf/kvf.h || continue
  nm -D --defined-only "$root/lib/libkvf.so" | grep -q " $name\$" || { echo "$name is in kvf.h and not exported"; exit 1; }
done

# pkg-config prefixes the paths of a .pc file with the folder it was installed under.
export PKG_CONFIG_PATH=$root/lib/pkgconfig
flags=$(pkg-config --define-variable=prefix="$root" --cflags --libs kvf)
awk '/^```c$/ {on = 1; next} /^```$/ {on = 0} on' README.md > "$folder/example.c" 2>/dev/null || true
if [ -s "$folder/example.c" ]; then
  # shellcheck disable=SC2086
  gcc -std=c11 -Wall -Wextra -Werror "$folder/example.c" -o "$folder/example" $flags
  LD_LIBRARY_PATH=$root/lib timeout 60 "$folder/example"
  # The static library, with its dependencies as shared ones. A build with CUDA also needs the toolkit's folder: left out.
  if ! nm "$root/lib/libkvf.a" 2>/dev/null | grep -q ' U cudaMalloc$'; then
    # shellcheck disable=SC2046
    gcc -std=c11 "$folder/example.c" -o "$folder/static" -I"$root/include" "$root/lib/libkvf.a" \
      $(pkg-config --libs $(sed -n 's/^Requires.private: //p' "$root/lib/pkgconfig/kvf.pc")) -lm -lpthread -ldl
    timeout 60 "$folder/static"
  fi
else
  printf '#include <kvf/kvf.h>\nint main(void) { return !kvf_version(); }\n' > "$folder/example.c"
  # shellcheck disable=SC2086
  gcc "$folder/example.c" -o "$folder/example" $flags
  LD_LIBRARY_PATH=$root/lib "$folder/example"
fi
