# The server on CPUs:
#
#     docker build -f docker/cpu.Dockerfile -t kinetoscope:latest \
#         --build-arg KINETOSCOPE_COMMIT=$(git rev-parse --short=12 HEAD) .
#
# docs/deploying.md says what the arguments are for. Needs BuildKit or Buildah 1.28. scripts/check-image.sh builds and tries it.

# A digest pins an image: --build-arg BASE_IMAGE=debian:bookworm-slim@sha256:...
ARG RUST_IMAGE=rust:1.95-slim-bookworm
ARG BASE_IMAGE=debian:bookworm-slim

# Only its toolchain is taken. What is built is built in the image that it runs in, so that libraries agree.
FROM ${RUST_IMAGE} AS rust

FROM ${BASE_IMAGE} AS ffmpeg
# trimmed, or distribution: see ffmpeg.sh.
ARG FFMPEG=trimmed
COPY docker/ffmpeg.sh /usr/local/src/
RUN /usr/local/src/ffmpeg.sh "${FFMPEG}"

# What decides which dependencies there are.
FROM ${BASE_IMAGE} AS manifests
WORKDIR /manifests
COPY Cargo.toml Cargo.lock ./
COPY crates/candle-conv3d/Cargo.toml crates/candle-conv3d/
COPY docker/dependencies.sh docker/

FROM ffmpeg AS build
ENV CARGO_HOME=/usr/local/cargo RUSTUP_HOME=/usr/local/rustup \
    PATH=/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
WORKDIR /usr/local/src/kinetoscope
ARG CARGO_FLAGS=
RUN apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    binutils ca-certificates gcc jq libc6-dev libclang-dev pkg-config
COPY --from=rust /usr/local/ /usr/local/
COPY --from=manifests /manifests/ ./
# Dependencies are compiled into a layer, not into a cache mount: a layer can be pushed and pulled (--cache-to, --layers
# --cache-from), so that builders without a disk of their own have it too. Only downloads are in a mount.
RUN --mount=type=cache,target=/usr/local/cargo/registry docker/dependencies.sh ${CARGO_FLAGS}
COPY . .
# Of the commit, for --version.
ARG KINETOSCOPE_COMMIT=unknown
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    cargo build --release --locked --bin kinetoscope ${CARGO_FLAGS} && docker/collect.sh ${CARGO_FLAGS}

FROM ${BASE_IMAGE} AS runtime
RUN --mount=type=bind,from=build,source=/packages,target=/packages \
    apt-get update -qq && \
    DEBIAN_FRONTEND=noninteractive xargs -a /packages apt-get install -y -qq --no-install-recommends ca-certificates && \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/* /var/log/*.log /var/log/apt && \
    echo 'kinetoscope:x:65532:65532::/nonexistent:/usr/sbin/nologin' >>/etc/passwd && \
    echo 'kinetoscope:x:65532:' >>/etc/group
COPY --from=build /out/ /
RUN ldconfig && kinetoscope --version

FROM ${BASE_IMAGE} AS sbom
RUN apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends jq
COPY docker/sbom.sh /usr/local/src/
RUN --mount=type=bind,from=build,source=/parts.json,target=/parts.json \
    --mount=type=bind,from=runtime,source=/var/lib/dpkg,target=/dpkg \
    /usr/local/src/sbom.sh /parts.json /dpkg >/usr/local/src/sbom.cdx.json

FROM runtime
COPY --from=sbom /usr/local/src/sbom.cdx.json /usr/share/doc/kinetoscope/
ARG KINETOSCOPE_COMMIT=unknown
# Where the source is, set by who publishes the image.
ARG SOURCE_URL=
LABEL org.opencontainers.image.title="kinetoscope" \
    org.opencontainers.image.description="A video action-recognition server: 3D ResNets over gRPC" \
    org.opencontainers.image.version="0.1.0" \
    org.opencontainers.image.revision="${KINETOSCOPE_COMMIT}" \
    org.opencontainers.image.source="${SOURCE_URL}" \
    org.opencontainers.image.licenses="(MIT OR Apache-2.0) AND OFL-1.1" \
    org.opencontainers.image.vendor="The Kinetoscope authors"
ENV KINETOSCOPE_CONFIG=/etc/kinetoscope/kinetoscope.toml
USER 65532:65532
# gRPC; metrics and probes.
EXPOSE 50051 9090
HEALTHCHECK --interval=10s --timeout=6s --start-period=60s CMD ["kinetoscope", "health"]
ENTRYPOINT ["kinetoscope"]
CMD ["serve"]
