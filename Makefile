# make         build            make demo   mirror a live nginx, watched     make test   every test
# make format  clang-format     make tidy   clang-tidy     make bench   what mirroring costs
# make asan, make tsan   every test under sanitizers

BUILD ?= build
JOBS ?= $(shell nproc)
BUILD_PACKAGES := g++ cmake ninja-build ccache pkg-config libpcap-dev libgrpc++-dev libprotobuf-dev \
  protobuf-compiler protobuf-compiler-grpc libcpp-httplib-dev libyaml-cpp-dev libgtest-dev \
  libspdlog-dev libcli11-dev prometheus-cpp-dev nlohmann-json3-dev libnftables-dev libmnl-dev \
  libxxhash-dev
LAB_PACKAGES := python3 iproute2 nftables procps nginx-light redis-server redis-tools postgresql \
  nghttp2-client nghttp2-server
SOURCES = git ls-files '*.h' '*.cc'

.PHONY: all demo test bench format tidy asan tsan clean build-packages lab-packages

all: build-packages
	@cmake -S . -B $(BUILD) -G Ninja $(CMAKE_FLAGS) >/dev/null
	@ninja -C $(BUILD) -j $(JOBS)

build-packages:
	@tools/install-packages $(BUILD_PACKAGES)

lab-packages:
	@tools/install-packages $(LAB_PACKAGES)

test: lab-packages all
	@ctest --test-dir $(BUILD) --output-on-failure --no-tests=error $(CTEST_FLAGS)

demo: lab-packages all
	@python3 -B tests/lab/demo.py --bin $(BUILD)/bin

bench: lab-packages all
	@python3 -B bench/rates.py --bin $(BUILD)/bin
	@python3 -B bench/bulk.py --bin $(BUILD)/bin

format:
	@tools/install-packages clang-format
	@$(SOURCES) | xargs clang-format -i

tidy: all
	@tools/install-packages clang-tidy
	@$(SOURCES) | grep '\.cc$$' | xargs -P $(JOBS) -n 4 clang-tidy --quiet -p $(BUILD)

asan:
	@$(MAKE) test BUILD=$(BUILD)-asan CMAKE_FLAGS="-DSANITIZER=address"

tsan:
	@$(MAKE) test BUILD=$(BUILD)-tsan CMAKE_FLAGS="-DSANITIZER=thread"

clean:
	@rm -rf $(BUILD) $(BUILD)-asan $(BUILD)-tsan
