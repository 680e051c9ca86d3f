# KVFabric. Plain `make` builds everything that this machine can; `make help` lists the rest.
#
#: make            library (libkvf.so, libkvf.a), kvfd, kvfcoord, kvf, examples, into build/
#: make demo       set-up, then a real language model's long session over four nodes (KILL=1 kills a lender)
#: make test       set-up, then every test; the last line counts them
#: make check      the tests without the set-up (TESTS="base tiers" takes some of them)
#: make test-rdma  the fabric over RDMA verbs, between two virtual machines with software RoCE (BENCH=1 measures instead)
#: make bench      kvf bench kernels into build/bench-kernels.json
#: make sim        the simulator: scenarios, then seeds for SECONDS (10) from SEED (1) on; sim-canaries: it finds planted bugs
#: make fuzz       libFuzzer targets, FUZZ_RUNS inputs each (needs clang)
#: make tidy       layers, sizes, warnings of a second compiler and of cppcheck
#: make install    PREFIX=/usr/local DESTDIR=
#: make clean      removes build/ but not the demo's model
#:
#: options: CUDA=0|1 UCX=0|1 URING=0|1 (found by themselves), SAN=address|thread, V=1, CC=, CFLAGS=

all: programs
.PHONY: all programs demo test test-rdma check bench fuzz sim sim-canaries tidy install clean help setup FORCE

# What this machine has. A site's own UCX (HPC-X, DOCA) is found through PKG_CONFIG_PATH.
PKG_CONFIG ?= pkg-config
NVCC ?= $(shell command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null)
UCX ?= $(shell $(PKG_CONFIG) --exists ucx 2>/dev/null && echo 1 || echo 0)
URING ?= $(shell $(PKG_CONFIG) --exists liburing 2>/dev/null && echo 1 || echo 0)
CUDA ?= $(if $(NVCC),1,0)
SAN ?=
# One build folder per configuration, so that variants stand side by side; the plain one is build/ itself.
found := ucx$(UCX)-uring$(URING)-cuda$(CUDA)
B := build/$(found)$(if $(SAN),-$(SAN))
COMMIT := $(shell git rev-parse --short HEAD 2>/dev/null || echo unknown)

CC ?= gcc
OPT ?= -O2
CFLAGS ?= -g $(OPT)
warn := -Wall -Wextra -Werror -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wno-unused-parameter
san_address := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
san_thread := -fsanitize=thread -fno-omit-frame-pointer
sanflags := $(if $(SAN),$(san_$(SAN)))
libs_pkg := jansson libcurl libmicrohttpd libxxhash libcrypto $(if $(filter 1,$(UCX)),ucx) $(if $(filter 1,$(URING)),liburing)
cpp := -I include -I . -D_GNU_SOURCE -DKVF_COMMIT='"$(COMMIT)"' -DKVF_FEATURES='"$(found)"'
cflags = -std=gnu11 $(cpp) $(shell $(PKG_CONFIG) --cflags $(libs_pkg)) $(warn) -fPIC -fvisibility=hidden -pthread $(CFLAGS) $(sanflags)
ldlibs = $(shell $(PKG_CONFIG) --libs $(libs_pkg)) -lm -lpthread -ldl $(if $(filter 1,$(CUDA)),$(cuda_libs))
cuda_libs = -L$(dir $(NVCC))../lib64 -lcudart_static -lrt -lstdc++
gencode := $(foreach a,80 90 100,-gencode arch=compute_$(a),code=sm_$(a)) -gencode arch=compute_100,code=compute_100
# Sources. A feature that is missing is another file with the same symbols: X_ucx.c or X_ucx_none.c.
rooms := base kernels fabric tiers coordinator node
optional := %_ucx.c %_ucx_none.c %_uring.c %_uring_none.c %_cuda_none.c
pick = $(if $(filter 1,$(1)),$(wildcard $(rooms:%=%/*_$(2).c)),$(wildcard $(rooms:%=%/*_$(2)_none.c)))
lib_c := $(filter-out $(optional) %/kvfd.c %/kvfcoord.c,$(wildcard $(rooms:%=%/*.c))) \
	$(call pick,$(UCX),ucx) $(call pick,$(URING),uring) $(if $(filter 1,$(CUDA)),,$(wildcard kernels/*_cuda_none.c))
lib_o := $(lib_c:%.c=$(B)/%.o) $(if $(filter 1,$(CUDA)),$(patsubst %.cu,$(B)/%.cu.o,$(wildcard kernels/*.cu)))
bench_o := $(patsubst %.c,$(B)/%.o,$(wildcard bench/*.c))
with_bench := $(bench_o)
cli_o := $(patsubst %.c,$(B)/%.o,$(wildcard cli/*.c)) $(bench_o)
llm_o := $(patsubst %.c,$(B)/%.o,$(wildcard examples/llm/*.c))
with_llm := $(filter-out %/main.o,$(llm_o))
test_c := $(foreach t,$(wildcard tests/*/test_*.c),$(if $(strip $(if $(TESTS),$(foreach w,$(TESTS),$(findstring $(w),$(t))),all)),$(t)))
test_bin := $(test_c:%.c=$(B)/%)
test_o := $(patsubst %.c,$(B)/%.o,$(wildcard tests/sim/*.c tests/support/*.c))
sim_o := $(patsubst %.c,$(B)/%.o,$(wildcard tests/sim/whole/*.c))
fuzz_bin := $(patsubst tests/fuzz/%.c,$(B)/fuzz/%,$(wildcard tests/fuzz/fuzz_*.c))
programs_b := $(B)/libkvf.a $(B)/libkvf.so $(B)/kvfd $(B)/kvfcoord $(B)/kvf $(B)/llm

q := $(if $(V),,@)
say = $(if $(V),,@echo "  $(1)")

programs: $(programs_b)
	$(q)[ $(B) = build/$(found) ] || exit 0; \
	 for f in $(notdir $(programs_b)); do ln -sfn $(notdir $(B))/$$f build/$$f; done
# The wide kernels are compiled for their instructions and chosen at run time. No contraction: bits are a promise.
avx2 := -O3 -ffp-contract=off -mavx2 -mfma -mf16c
avx512 := $(avx2) -mavx512f -mavx512bw -mavx512dq -mavx512vl
$(B)/kernels/%_avx2.o $(B)/examples/llm/%_avx2.o: simd := $(avx2)
$(B)/kernels/%_avx512.o $(B)/examples/llm/%_avx512.o: simd := $(avx512)
$(B)/kernels/checksum_plain.o: simd := -O3

$(B)/%.o: %.c $(B)/flags
	@mkdir -p $(@D)
	$(call say,cc   $<)
	$(q)$(CC) $(cflags) $(simd) -MMD -MP -c $< -o $@
$(B)/kernels/cache_cuda.cu.o: nvflags := -fmad=false
$(B)/%.cu.o: %.cu $(B)/flags
	@mkdir -p $(@D)
	$(call say,nvcc $<)
	$(q)$(NVCC) -std=c++17 -O3 $(gencode) $(nvflags) -I include -I . -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Wextra -c $< -o $@
$(B)/libkvf.a: $(lib_o)
	$(call say,ar   $@)
	$(q)rm -f $@; ar rcs $@ $^
$(B)/libkvf.so: $(lib_o)
	$(call say,ld   $@)
	$(q)$(CC) -shared -Wl,-soname,libkvf.so.0 $(sanflags) -o $@ $^ $(ldlibs)
$(B)/kvfd: $(B)/node/kvfd.o $(B)/libkvf.a
$(B)/kvfcoord: $(B)/coordinator/kvfcoord.o $(B)/libkvf.a
$(B)/kvf: $(cli_o) $(B)/libkvf.a
$(B)/llm: $(llm_o) $(B)/libkvf.a
$(B)/sim: $(sim_o) $(B)/libtests.a $(B)/libkvf.a
$(B)/sim: wrap := -Wl,--wrap=kvf_core_lock,--wrap=kvf_block_verify # world.c says why
$(B)/kvfd $(B)/kvfcoord $(B)/kvf $(B)/llm $(B)/sim:
	$(call say,ld   $@)
	$(q)$(CC) $(sanflags) $(wrap) -o $@ $^ $(ldlibs)
$(B)/libtests.a: $(test_o)
	$(q)rm -f $@; ar rcs $@ $^
$(B)/tests/fabric/test_faults_net: $(B)/bench/network.o
.SECONDEXPANSION:
$(B)/tests/%: $(B)/tests/%.o $$(with_$$(*D)) $(B)/libtests.a $(B)/libkvf.a
	$(call say,ld   $@)
	$(q)$(CC) $(sanflags) -o $@ $^ -lcmocka $(ldlibs)
.SECONDARY:
# The version names the commit: made anew when that changes.
$(B)/base/version.o: $(B)/commit
$(B)/commit: FORCE
	@mkdir -p $(B); echo '$(COMMIT)' | cmp -s - $@ || echo '$(COMMIT)' > $@
# Rebuilds everything when the flags change.
$(B)/flags: FORCE
	@mkdir -p $(B); echo '$(CC) $(CFLAGS) $(sanflags) $(warn)' | cmp -s - $@ || echo '$(CC) $(CFLAGS) $(sanflags) $(warn)' > $@
-include $(shell find $(B) -name '*.d' 2>/dev/null)

setup:
	$(q)deploy/deps.sh
demo: setup
	$(q)$(MAKE) --no-print-directory programs
	$(q)python3 examples/llm/demo.py --build $(B) $(if $(KILL),--kill) $(DEMO)
test: setup
	$(q)$(MAKE) --no-print-directory check
check: programs $(test_bin)
	$(q)KVF_BUILD=$(B) tests/run $(if $(TESTS),$(TESTS:%=--only %)) $(test_bin)
bench: programs
	$(q)$(B)/kvf bench kernels --json build/bench-kernels.json
fuzz: $(fuzz_bin)
	$(q)tests/fuzz/run $(or $(FUZZ_RUNS),100000) $(fuzz_bin)
sim: $(B)/sim
	$(q)$< --scenarios && $< --seconds $(or $(SECONDS),10) --start-seed $(or $(SEED),1)
sim-canaries: $(B)/sim
	$(q)$< --canaries
$(B)/fuzz/%: tests/fuzz/%.c $(lib_c)
	@mkdir -p $(@D)
	$(call say,fuzz $@)
	$(q)tests/fuzz/build $@ $<
test-rdma: programs $(B)/tests/rdma/pair $(B)/tests/fabric/test_ucx
	$(q)deploy/deps.sh --rdma || true
	$(q)KVF_BUILD=$(B) tests/rdma/run $(if $(BENCH),--bench bench/results/fabric-rdma-softroce.json)
tidy:
	$(q)tests/tidy/layers.py && tests/tidy/sizes.py && tests/tidy/static
help:
	@sed -n 's/^#: \{0,1\}//p' Makefile
PREFIX ?= /usr/local
install: programs
	install -d $(addprefix $(DESTDIR)$(PREFIX)/,bin lib/pkgconfig include/kvf share/kvf)
	install -m 755 $(B)/kvf $(B)/kvfd $(B)/kvfcoord $(DESTDIR)$(PREFIX)/bin/
	install -m 644 $(B)/libkvf.a $(DESTDIR)$(PREFIX)/lib/
	install -m 755 $(B)/libkvf.so $(DESTDIR)$(PREFIX)/lib/libkvf.so.0
	ln -sf libkvf.so.0 $(DESTDIR)$(PREFIX)/lib/libkvf.so
	install -m 644 include/kvf/kvf.h $(DESTDIR)$(PREFIX)/include/kvf/; install -m 644 bench/mooncake_store.py $(DESTDIR)$(PREFIX)/share/kvf/
	sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@LIBS@|$(libs_pkg)|' deploy/kvf.pc.in > $(DESTDIR)$(PREFIX)/lib/pkgconfig/kvf.pc
clean:
	find build -mindepth 1 -maxdepth 1 ! -name model -exec rm -rf {} + 2>/dev/null || true
