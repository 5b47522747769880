# One image for each service:  docker build --build-arg SERVICE=inventory --tag trellis/inventory:local .
# They share all stages but the last two lines of work, and the caches keep crates and objects between builds.

FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
ARG SERVICE
# The target folder is a cache, not a layer: the program is copied out of it in the same step. Every build here shares it, and cargo
# goes by files' times: sources older than what another checkout left there would count as built. Hence they are touched first.
# A service generates its surfaces as it is built: a folder without a build.rs, such as the shop's, is none.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target,sharing=locked \
    { [ -f "services/$SERVICE/build.rs" ] || { echo "--build-arg SERVICE=$(ls services/*/build.rs | cut -d / -f 2 | paste -s -d '|')" >&2; exit 1; }; } \
    && find . -path ./target -prune -o -type f -exec touch {} + \
    && cargo build --release --locked --package "$SERVICE" \
    && install -D --strip "target/release/$SERVICE" /out/usr/local/bin/service \
    && install -d -o 65532 -g 65532 /out/data

FROM debian:bookworm-slim
# The program, and an empty /data that its user may write to.
COPY --from=build /out /
# The authorities that a broker at tls:// is trusted by; the slim image has none.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
USER 65532:65532
ARG SERVICE
# Inside a container the host's ports are the container's own to choose; the rest is in `service --help`.
ENV DATABASE_URL=sqlite:/data/$SERVICE.db
VOLUME /data
EXPOSE 50051 50052 50053 50054
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s CMD ["service", "health"]
ENTRYPOINT ["service"]
