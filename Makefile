# make         build            make demo   mirror a live nginx, watched     make test   every test
# make manifests   deploy/manifests, out of the chart
# make cluster-test   the test on real pods alone; KUBE_BIN=FOLDER: on another Kubernetes
# make format  clang-format     make tidy   clang-tidy     make bench   what mirroring costs
# make asan, make tsan   every test under sanitizers
# make soak     simulates new seeds until stopped
# make fuzz     looks for new inputs         make fuzz-corpus   keeps those that reach further

BUILD ?= build
JOBS ?= $(shell nproc)
BUILD_PACKAGES := g++ cmake ninja-build ccache pkg-config libpcap-dev libgrpc++-dev libprotobuf-dev \
  protobuf-compiler protobuf-compiler-grpc libcpp-httplib-dev libyaml-cpp-dev libgtest-dev \
  libspdlog-dev libcli11-dev prometheus-cpp-dev nlohmann-json3-dev libnftables-dev libmnl-dev \
  libxxhash-dev libssl-dev zlib1g-dev libzstd-dev
LAB_PACKAGES := python3 python3-yaml iproute2 nftables procps nginx-light redis-server redis-tools \
  postgresql postgresql-contrib mariadb-server mariadb-client sysbench nghttp2-client nghttp2-server openssl tcpdump \
  dnsmasq-base dnsperf zstd
CLUSTER_PACKAGES := containerd runc containernetworking-plugins conntrack iptables jq busybox-static
FUZZ_PACKAGES := clang libclang-rt-14-dev
FUZZ_TARGETS ?= packet session login stream configuration
FUZZ_SECONDS ?= 600
FUZZ := $(BUILD)-fuzz
# Other seeds each time.
SOAK_FROM ?= $(shell date +%s)0001
SOURCES = git ls-files '*.h' '*.cc'

.PHONY: all demo test bench format tidy asan tsan soak fuzz fuzz-build fuzz-corpus clean build-packages \
  lab-packages cluster-packages cluster-test kubernetes-binaries helm-binary manifests

all: build-packages
	@cmake -S . -B $(BUILD) -G Ninja $(CMAKE_FLAGS) >/dev/null
	@ninja -C $(BUILD) -j $(JOBS)

build-packages:
	@tools/install-packages $(BUILD_PACKAGES)

lab-packages:
	@tools/install-packages $(LAB_PACKAGES)

# Where they cannot be had, the cluster's test is skipped, and says so.
cluster-packages:
	@tools/install-packages $(CLUSTER_PACKAGES) || echo "There will be no cluster's test."

# Where they cannot be had (2), the tests that need them are skipped, and say so.
kubernetes-binaries:
	@tools/kubernetes-binaries >/dev/null || [ $$? = 2 ]

helm-binary:
	@tools/helm-binary >/dev/null || [ $$? = 2 ]

test: lab-packages cluster-packages kubernetes-binaries helm-binary all
	@rm -f $(BUILD)/cluster.txt
	@ctest --test-dir $(BUILD) --output-on-failure --no-tests=error $(CTEST_FLAGS); result=$$?; \
	  [ ! -e $(BUILD)/cluster.txt ] || { echo "On two real nodes:"; cat $(BUILD)/cluster.txt; }; \
	  exit $$result

# KUBE_BIN=FOLDER: another Kubernetes, with etcd, kubectl and what nodes run beside kube-apiserver.
cluster-test: lab-packages cluster-packages helm-binary all
	@[ -n "$$KUBE_BIN" ] || $(MAKE) kubernetes-binaries
	@ctest --test-dir $(BUILD) -V -L cluster --no-tests=error

demo: lab-packages all
	@python3 -B tests/lab/demo.py --bin $(BUILD)/bin

bench: lab-packages kubernetes-binaries all
	@python3 -B bench/rates.py --bin $(BUILD)/bin
	@python3 -B bench/bulk.py --bin $(BUILD)/bin
	@python3 -B bench/replay.py --bin $(BUILD)/bin
	@python3 -B bench/operator_scale.py --bin $(BUILD)/bin

manifests:
	@tools/helm-binary >/dev/null
	@tools/manifests deploy/manifests

format:
	@tools/install-packages clang-format
	@$(SOURCES) | xargs clang-format -i

tidy: all
	@tools/install-packages clang-tidy
	@$(SOURCES) | grep '\.cc$$' | xargs -P $(JOBS) -n 4 clang-tidy --quiet -p $(BUILD)

asan:
	@$(MAKE) test BUILD=$(BUILD)-asan CMAKE_FLAGS="-DSANITIZER=address"

tsan:
	@TSAN_OPTIONS=suppressions=$(CURDIR)/tests/thread_sanitizer.supp LAB_RATE=0.2 \
	  $(MAKE) test BUILD=$(BUILD)-tsan CMAKE_FLAGS="-DSANITIZER=thread"

# A line for every 10,000 seeds; ends at the first that fails.
soak: all
	@seq -f %.0f $(SOAK_FROM) 10000 inf | xargs -P $(JOBS) -I{} sh -c ' \
	  result=$$($(BUILD)/bin/simulation --seeds {}-$$(({} + 9999))) || { echo "$$result"; exit 255; }; \
	  echo "$$result" | head -1'

fuzz-build:
	@tools/install-packages $(BUILD_PACKAGES) $(FUZZ_PACKAGES)
	@cmake -S . -B $(FUZZ) -G Ninja -DFUZZ=ON -DCMAKE_CXX_COMPILER=clang++ >/dev/null
	@ninja -C $(FUZZ) -j $(JOBS) fuzz

# One target after the other, FUZZ_SECONDS each. What finds something is left beside its log.
fuzz: fuzz-build
	@set -e; for target in $(FUZZ_TARGETS); do \
	  mkdir -p $(FUZZ)/found/$$target; \
	  $(FUZZ)/bin/fuzz_$$target -max_total_time=$(FUZZ_SECONDS) -timeout=20 -max_len=1200 \
	    -len_control=0 -artifact_prefix=$(FUZZ)/$$target- $(FUZZ)/found/$$target \
	    tests/fuzz/corpus/$$target >$(FUZZ)/$$target.log 2>&1 || { \
	    grep -a -A 30 -e 'does not hold' -e ERROR: -e 'runtime error' $(FUZZ)/$$target.log; \
	    echo "$$target found something: see $(FUZZ)/$$target.log"; exit 1; }; \
	  echo "$$target: $$(grep -a DONE $(FUZZ)/$$target.log)"; \
	done

# Only what reaches code that nothing in the corpus does, so that it stays small.
fuzz-corpus: fuzz-build
	@set -e; for target in $(FUZZ_TARGETS); do \
	  mkdir -p $(FUZZ)/found/$$target; \
	  $(FUZZ)/bin/fuzz_$$target -set_cover_merge=1 -use_counters=0 tests/fuzz/corpus/$$target \
	    $(FUZZ)/found/$$target >$(FUZZ)/$$target.log 2>&1; \
	  echo "$$target: $$(ls tests/fuzz/corpus/$$target | wc -l) files"; \
	done

clean:
	@rm -rf $(BUILD) $(BUILD)-asan $(BUILD)-tsan $(FUZZ)
