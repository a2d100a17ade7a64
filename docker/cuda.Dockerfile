# The server on NVIDIA GPUs. NOT TRIED: this file has neither been built from its real base nor run on a GPU.
#
#     docker build -f docker/cuda.Dockerfile -t kinetoscope:cuda \
#         --build-arg KINETOSCOPE_COMMIT=$(git rev-parse --short=12 HEAD) .
#     docker run --gpus all kinetoscope:cuda
#
# Stages, arguments and scripts are those of cpu.Dockerfile, which explains them; what differs is the base, CARGO_FLAGS, and
# CUDA's libraries. Those are loaded when the server starts, so that building needs neither them nor a compiler of CUDA's.

ARG RUST_IMAGE=rust:1.95-slim-bookworm
ARG BASE_IMAGE=nvidia/cuda:13.0.2-base-ubuntu24.04

FROM ${RUST_IMAGE} AS rust

FROM ${BASE_IMAGE} AS ffmpeg
# Ubuntu's package is in universe, which gets fewer security updates than Debian's.
ARG FFMPEG=trimmed
COPY docker/ffmpeg.sh /usr/local/src/
RUN /usr/local/src/ffmpeg.sh "${FFMPEG}"

FROM ${BASE_IMAGE} AS manifests
WORKDIR /manifests
COPY Cargo.toml Cargo.lock ./
COPY crates/candle-conv3d/Cargo.toml crates/candle-conv3d/
COPY docker/dependencies.sh docker/

FROM ffmpeg AS build
ENV CARGO_HOME=/usr/local/cargo RUSTUP_HOME=/usr/local/rustup \
    PATH=/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
WORKDIR /usr/local/src/kinetoscope
ARG CARGO_FLAGS="--features cuda"
RUN apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    binutils ca-certificates gcc jq libc6-dev libclang-dev pkg-config
COPY --from=rust /usr/local/ /usr/local/
COPY --from=manifests /manifests/ ./
RUN --mount=type=cache,target=/usr/local/cargo/registry docker/dependencies.sh ${CARGO_FLAGS}
COPY . .
ARG KINETOSCOPE_COMMIT=unknown
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    cargo build --release --locked --bin kinetoscope ${CARGO_FLAGS} && docker/collect.sh ${CARGO_FLAGS}

FROM ${BASE_IMAGE} AS runtime
# Compiles kernels when the server starts, convolves, and what that multiplies matrices with. The packages are in the list of
# sources that the base has; libcuda is the driver's, and the NVIDIA container toolkit brings it in.
ARG CUDA_PACKAGES="cuda-nvrtc-13-0 libcudnn9-cuda-13 libcublas-13-0"
RUN --mount=type=bind,from=build,source=/packages,target=/packages \
    apt-get update -qq && \
    DEBIAN_FRONTEND=noninteractive xargs -a /packages apt-get install -y -qq --no-install-recommends ca-certificates \
        ${CUDA_PACKAGES} && \
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
ARG SOURCE_URL=
LABEL org.opencontainers.image.title="kinetoscope" \
    org.opencontainers.image.description="A video action-recognition server: 3D ResNets over gRPC, on NVIDIA GPUs" \
    org.opencontainers.image.version="0.1.0" \
    org.opencontainers.image.revision="${KINETOSCOPE_COMMIT}" \
    org.opencontainers.image.source="${SOURCE_URL}" \
    org.opencontainers.image.licenses="(MIT OR Apache-2.0) AND OFL-1.1" \
    org.opencontainers.image.vendor="The Kinetoscope authors"
ENV KINETOSCOPE_CONFIG=/etc/kinetoscope/kinetoscope.toml \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 65532:65532
EXPOSE 50051 9090
HEALTHCHECK --interval=10s --timeout=6s --start-period=60s CMD ["kinetoscope", "health"]
ENTRYPOINT ["kinetoscope"]
CMD ["serve"]
