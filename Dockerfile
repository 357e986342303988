# syntax=docker/dockerfile:1
# The image of every role: `docker run eshaar serve`, `… ingest`, `… processors`, `… gateway`.

FROM rust:1.95.0-bookworm AS build
WORKDIR /src
# Not pinned: a rebuild of the image is how it gets Debian's security fixes.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libssl-dev pkg-config zlib1g-dev \
    && rm -rf /var/lib/apt/lists/*
COPY . .
# Crates and what is built of them stay in the builder's cache; the binary is taken out of it.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --locked --release --package eshaar --bin eshaar \
    && install -D target/release/eshaar /out/eshaar

FROM debian:bookworm-slim
# What the binary is linked with, the authorities that it checks certificates with, and an allocator that costs a message a tenth
# less than glibc's.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libjemalloc2 libssl3 zlib1g \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin eshaar \
    && install -d -o eshaar -g eshaar -m 0700 /var/lib/eshaar
COPY --from=build /out/eshaar /usr/local/bin/eshaar
USER 10001
# Outside its container nobody reaches a loopback address. Data is written only by the embedded engines and for the console.
ENV ESHAAR_LISTEN=0.0.0.0:8080 ESHAAR_DATA_DIR=/var/lib/eshaar LD_PRELOAD=libjemalloc.so.2
VOLUME /var/lib/eshaar
EXPOSE 8080
# Ready is what a load balancer asks too. The image has no HTTP client but the shell.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8080 && printf 'GET /health/ready HTTP/1.0\\r\\n\\r\\n' >&3 && read -r _ code _ <&3 && [ \"$code\" = 200 ]"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["eshaar"]
CMD ["serve"]
