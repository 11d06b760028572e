# Both programs in one image; the sidecar is the default.
#   docker build -t trafficmirror .
#   docker run --rm --network container:my-app --cap-drop ALL --cap-add NET_RAW trafficmirror \
#     trafficmirror-sidecar --port 8080 --intercept 10.0.2.9:7443
FROM debian:12-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends make
WORKDIR /src
COPY Makefile ./
COPY tools tools
RUN make build-packages
COPY . .
RUN cmake -S . -B build -G Ninja -DBUILD_TESTING=OFF -DCMAKE_BUILD_TYPE=Release && ninja -C build

FROM debian:12-slim
COPY tools/install-packages /tmp/
RUN apt-get update && /tmp/install-packages libgrpc++1.51 libprotobuf32 libpcap0.8 libyaml-cpp0.7 \
      libspdlog1.10 libprometheus-cpp-core1.0 libnftables1 libmnl0 libxxhash0 libcpp-httplib0.11 && \
    rm -rf /var/lib/apt/lists/* /tmp/install-packages
COPY --from=build /src/build/bin/trafficmirror-sidecar /src/build/bin/trafficmirror-intercept /usr/local/bin/
ENTRYPOINT []
CMD ["trafficmirror-sidecar", "--help"]
