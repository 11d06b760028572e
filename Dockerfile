# An image for each program: docker build --target sidecar -t trafficmirror-sidecar:0.1.0 .
# and the same for intercept and operator. Without Kubernetes:
#   docker run --rm --network container:my-app --cap-drop ALL --cap-add NET_RAW \
#     trafficmirror-sidecar:0.1.0 --port 8080 --intercept 10.0.2.9:7443
FROM debian:12-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends make ca-certificates
WORKDIR /src
COPY Makefile ./
COPY tools tools
RUN make build-packages
COPY . .
RUN cmake -S . -B build -G Ninja -DBUILD_TESTING=OFF && ninja -C build
RUN for name in sidecar intercept operator; do \
      tools/root-filesystem build/bin/trafficmirror-$name /images/$name || exit 1; \
    done

FROM scratch AS sidecar
COPY --from=build /images/sidecar /
ENTRYPOINT ["/usr/bin/trafficmirror-sidecar"]

FROM scratch AS intercept
COPY --from=build /images/intercept /
ENTRYPOINT ["/usr/bin/trafficmirror-intercept"]

FROM scratch AS operator
COPY --from=build /images/operator /
ENTRYPOINT ["/usr/bin/trafficmirror-operator"]
