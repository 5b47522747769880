//! What a call can end like on the wire, and what each says: sixteen codes in four kinds of call from a tonic server, and what no
//! gRPC server should do, from a raw HTTP/2 one.
#![cfg(feature = "rpc")]
#![allow(clippy::unwrap_used, reason = "a test")]

mod breaker_support;

use std::{sync::atomic::Ordering, time::Duration};

use breaker_support::{PATIENCE, eager, serve};
use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use libs::{
    breaker::{Class, Classes, Config, Fallback, Registry},
    rpc::client::{Peer, PeerOptions, Peers},
};
use tokio::net::TcpListener;
use tonic::{
    Code, Status, Streaming,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
};

/// Bytes as they are.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put(buffer, item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = bytes::Buf::remaining(buffer);
        Ok(Some(bytes::Buf::copy_to_bytes(buffer, length)))
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Unary,
    ServerStreaming,
    ClientStreaming,
    Bidirectional,
}

const KINDS: [Kind; 4] = [Kind::Unary, Kind::ServerStreaming, Kind::ClientStreaming, Kind::Bidirectional];

/// Calls as that kind, and reads the answer to its end.
async fn call(peer: &Peer, kind: Kind, path: &str) -> Result<(), Status> {
    let mut grpc = Grpc::new(peer.clone());
    let path: PathAndQuery = path.parse().unwrap();
    let message = || tonic::Request::new(Bytes::from_static(b"hello"));
    let messages = || tonic::Request::new(tokio_stream::iter([Bytes::from_static(b"one"), Bytes::from_static(b"two")]));
    let drain = |response: tonic::Response<Streaming<Bytes>>| async move {
        let mut stream = response.into_inner();
        while stream.message().await?.is_some() {}
        Ok(())
    };
    match kind {
        Kind::Unary => grpc.unary(message(), path, Raw).await.map(drop),
        Kind::ClientStreaming => grpc.client_streaming(messages(), path, Raw).await.map(drop),
        Kind::ServerStreaming => drain(grpc.server_streaming(message(), path, Raw).await?).await,
        Kind::Bidirectional => drain(grpc.streaming(messages(), path, Raw).await?).await,
    }
}

fn peer(address: std::net::SocketAddr, options: &PeerOptions) -> Peer {
    let uri = format!("http://{address}");
    Peers::new(Registry::new(), &[("peer", &*uri)], Vec::new()).unwrap().connect_with("peer", options).unwrap()
}

/// A server that ends calls as their path says: `/trailers-only/CODE` or `/trailers/CODE`.
#[derive(Clone)]
struct AsAsked;

impl tonic::server::NamedService for AsAsked {
    const NAME: &'static str = "as.Asked";
}

impl tower::Service<http::Request<tonic::body::Body>> for AsAsked {
    type Response = Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = std::future::Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let (place, code) = request.uri().path()["/as.Asked/".len()..].split_once('-').unwrap();
        let status = Status::new(Code::from_i32(code.parse().unwrap()), "as asked");
        std::future::ready(Ok(if place == "headers" {
            status.into_http()
        } else {
            let mut trailers = HeaderMap::new();
            status.add_header(&mut trailers).unwrap();
            let frames = [
                Ok::<_, Status>(http_body::Frame::data(Bytes::from_static(b"\0\0\0\0\x05hello"))),
                Ok(http_body::Frame::trailers(trailers)),
            ];
            let body = tonic::body::Body::new(http_body_util::StreamBody::new(tokio_stream::iter(frames)));
            Response::builder().header("content-type", "application/grpc").body(body).unwrap()
        }))
    }
}

#[tokio::test]
async fn sixteen_codes_in_four_kinds_of_call_say_what_the_table_says() {
    let address = serve(tonic::transport::Server::builder().add_service(AsAsked)).await;
    for code in (0..=16).map(Code::from_i32) {
        for kind in KINDS {
            for place in ["headers", "trailers"] {
                if code == Code::Ok && place == "headers" {
                    continue; // Without a message that is no answer.
                }
                let peer = peer(address, &eager());
                let result = call(&peer, kind, &format!("/as.Asked/{place}-{}", code as i32)).await;
                assert_eq!(result.err().map_or(Code::Ok, |status| status.code()), code, "{kind:?} {place}");
                let totals = peer.breaker().snapshot().totals;
                let meant = match Classes::default().of(code) {
                    Class::Success => (1, 0, 0, 0),
                    Class::Failure => (0, 1, 0, 0),
                    Class::Overload => (0, 0, 1, 0),
                    Class::Neutral => (0, 0, 0, 1),
                };
                let seen = (totals.success, totals.failure, totals.overload, totals.neutral);
                assert_eq!(seen, meant, "{code:?} {kind:?} {place}");
            }
        }
    }
}

/// How a raw HTTP/2 server ends every call.
#[derive(Clone, Copy, Debug)]
enum Ending {
    /// A message and the end of the stream, and no trailers.
    NoTrailers,
    /// Only headers with this HTTP status.
    Http(StatusCode),
    /// Headers, a message, then a reset.
    Reset(h2::Reason),
    /// A reset instead of headers.
    ResetAtOnce(h2::Reason),
    /// Trailers without a status.
    TrailersWithoutStatus,
    /// A status that is no number.
    Gibberish,
    /// A call left without a word, by the end of the connection.
    Gone,
    /// Headers and a message, then the end of the connection.
    Cut,
    /// An overload that asks for a pause.
    Pushback,
    /// An error whose details are not base64, in the headers or in trailers.
    Illegible { in_headers: bool },
}

async fn raw_server(ending: Ending) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(socket).await.unwrap();
                let mut pings = connection.ping_pong().unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    if matches!(ending, Ending::Gone) {
                        return;
                    }
                    end(&mut respond, ending);
                    if matches!(ending, Ending::Cut) {
                        // What was said is on its way when a ping comes back.
                        tokio::select! { _ = pings.ping(h2::Ping::opaque()) => return, _ = connection.accept() => return }
                    }
                }
            });
        }
    });
    address
}

const ILLEGIBLE: [(&str, &str); 2] = [("grpc-status", "13"), ("grpc-status-details-bin", "?!")];

fn end(respond: &mut h2::server::SendResponse<Bytes>, ending: Ending) {
    let ok = |status: StatusCode| {
        Response::builder().status(status).header("content-type", "application/grpc").body(()).unwrap()
    };
    let message = Bytes::from_static(b"\0\0\0\0\x05hello");
    let trailers = |pairs: &[(&'static str, &'static str)]| -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    };
    match ending {
        Ending::ResetAtOnce(reason) => respond.send_reset(reason),
        Ending::Http(status) => drop(respond.send_response(ok(status), true).unwrap()),
        Ending::Pushback | Ending::Illegible { in_headers: true } => {
            let mut response = ok(StatusCode::OK);
            let pause = [("grpc-status", "8"), ("grpc-retry-pushback-ms", "30000")];
            let status = if matches!(ending, Ending::Pushback) { pause } else { ILLEGIBLE };
            response.headers_mut().extend(trailers(&status));
            drop(respond.send_response(response, true).unwrap());
        }
        _ => {
            let mut stream = respond.send_response(ok(StatusCode::OK), false).unwrap();
            let last = matches!(ending, Ending::NoTrailers);
            stream.send_data(message, last).unwrap();
            match ending {
                Ending::Reset(reason) => stream.send_reset(reason),
                Ending::TrailersWithoutStatus => stream.send_trailers(trailers(&[("x-other", "1")])).unwrap(),
                Ending::Illegible { .. } => stream.send_trailers(trailers(&ILLEGIBLE)).unwrap(),
                Ending::Gibberish => stream.send_trailers(trailers(&[("grpc-status", "well")])).unwrap(),
                _ => {}
            }
        }
    }
}

#[tokio::test]
async fn what_no_server_should_do_counts_against_it() {
    let wrong = [
        Ending::NoTrailers,
        Ending::TrailersWithoutStatus,
        Ending::Gibberish,
        Ending::Gone,
        Ending::Cut,
        Ending::Http(StatusCode::NOT_FOUND),
        Ending::Http(StatusCode::BAD_GATEWAY),
        Ending::Http(StatusCode::SERVICE_UNAVAILABLE),
        Ending::Http(StatusCode::INTERNAL_SERVER_ERROR),
        Ending::Http(StatusCode::OK),
        Ending::Reset(h2::Reason::INTERNAL_ERROR),
        Ending::Reset(h2::Reason::CANCEL),
        Ending::Reset(h2::Reason::NO_ERROR),
        Ending::Reset(h2::Reason::ENHANCE_YOUR_CALM),
        Ending::ResetAtOnce(h2::Reason::REFUSED_STREAM),
        Ending::ResetAtOnce(h2::Reason::INTERNAL_ERROR),
    ];
    for ending in wrong {
        for kind in [Kind::Unary, Kind::ServerStreaming] {
            let peer = peer(raw_server(ending).await, &eager());
            let result = call(&peer, kind, "/some.Service/Method").await;
            assert!(result.is_err(), "{ending:?} {kind:?}");
            let totals = peer.breaker().snapshot().totals;
            assert_eq!((totals.success, totals.failure), (0, 1), "{ending:?} {kind:?}: {result:?}");
        }
    }
}

#[tokio::test]
async fn a_call_that_is_cut_off_is_unavailable_and_a_fallback_stands_in() {
    let fallback = Fallback::on_open().or_on(&[Code::Unavailable]);
    for ending in [Ending::Gone, Ending::Cut, Ending::ResetAtOnce(h2::Reason::CANCEL)] {
        for options in [eager(), breaker_support::patient(PeerOptions::query())] {
            for kind in [Kind::Unary, Kind::ServerStreaming] {
                let peer = peer(raw_server(ending).await, &options);
                let status = call(&peer, kind, "/some.Service/Method").await.unwrap_err();
                assert_eq!(status.code(), Code::Unavailable, "{ending:?} {kind:?}: {status:?}");
                assert!(fallback.applies_to(&status), "{ending:?} {kind:?}");
            }
        }
    }
}

#[tokio::test]
async fn what_a_reset_says_of_one_call_is_said_as_grpc_has_it() {
    for (reason, code) in [
        (h2::Reason::INTERNAL_ERROR, Code::Internal),
        (h2::Reason::ENHANCE_YOUR_CALM, Code::ResourceExhausted),
        (h2::Reason::REFUSED_STREAM, Code::Unavailable),
    ] {
        let peer = peer(raw_server(Ending::ResetAtOnce(reason)).await, &eager());
        let status = call(&peer, Kind::Unary, "/some.Service/Method").await.unwrap_err();
        assert_eq!(status.code(), code, "{reason:?}: {status:?}");
    }
}

#[tokio::test]
async fn details_that_nobody_can_read_are_left_out() {
    // tonic panics on them.
    for in_headers in [true, false] {
        for kind in KINDS {
            let peer = peer(raw_server(Ending::Illegible { in_headers }).await, &eager());
            let status = call(&peer, kind, "/some.Service/Method").await.unwrap_err();
            assert_eq!((status.code(), status.details()), (Code::Internal, &[][..]), "{kind:?}");
            assert_eq!(peer.breaker().snapshot().totals.failure, 1);
        }
    }
}

#[tokio::test]
async fn a_proxy_that_forbids_is_an_answer() {
    for status in [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN] {
        let peer = peer(raw_server(Ending::Http(status)).await, &eager());
        call(&peer, Kind::Unary, "/some.Service/Method").await.unwrap_err();
        assert_eq!(peer.breaker().snapshot().totals.success, 1);
    }
}

#[tokio::test]
async fn a_pause_that_is_asked_for_is_kept() {
    let options = breaker_support::patient(PeerOptions::saga());
    let config = Config::builder().min_calls(1).build().unwrap();
    let peer = peer(raw_server(Ending::Pushback).await, &options.breaker(config));
    assert_eq!(call(&peer, Kind::Unary, "/some.Service/Method").await.unwrap_err().code(), Code::ResourceExhausted);
    let shown = peer.breaker().snapshot();
    assert_eq!(shown.totals.overload, 1);
    // Of thirty seconds some have passed since. A circuit that opens by itself does so for six at the most.
    assert!(shown.retry_after.unwrap() > Duration::from_secs(10), "{shown:?}");
}

#[tokio::test]
async fn a_client_that_leaves_early_blames_nobody() {
    let moody = breaker_support::Moody::serve().await;
    moody.set(breaker_support::HANG);
    let config = Config::builder().abandon_after(PATIENCE).build().unwrap();
    let peer = breaker_support::peer_at(&moody.uri, &eager().breaker(config));
    for _ in 0..5 {
        // Long enough to be sent, short of any deadline.
        let mut pending = std::pin::pin!(breaker_support::list(&peer));
        let sent = moody.calls.load(Ordering::SeqCst) + 1;
        while moody.calls.load(Ordering::SeqCst) < sent {
            tokio::select! { _ = &mut pending => unreachable!("it hangs"), () = tokio::task::yield_now() => {} }
        }
    }
    let totals = peer.breaker().snapshot().totals;
    assert_eq!((totals.abandoned_neutral, totals.failure), (5, 0));
}
