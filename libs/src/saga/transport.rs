//! How operations reach their participants: bytes out, bytes and metadata back.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    sync::Arc,
    time::Duration,
};

use bytes::{Buf as _, BufMut as _, Bytes};
use futures::future::BoxFuture;
use tonic::{
    Request, Status,
    client::GrpcService,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::{Body, StdError, http::uri::PathAndQuery},
    metadata::MetadataMap,
};

use super::definition::Definition;
use crate::rpc::deadline::{GRPC_TIMEOUT, format_grpc_timeout};

/// One attempt of one operation.
#[derive(Debug)]
pub struct Attempt {
    /// The peer.
    pub peer: &'static str,
    /// The method's path.
    pub path: &'static str,
    /// The request: the same bytes in every attempt.
    pub request: Bytes,
    /// Which operation it is, and the trace it belongs to.
    pub metadata: MetadataMap,
    /// How long it may take.
    pub timeout: Duration,
}

/// Carries attempts to participants. Tests carry them elsewhere.
pub trait Transport: Send + Sync + 'static {
    /// Makes the attempt.
    fn call(&self, attempt: Attempt) -> BoxFuture<'static, Result<(Bytes, MetadataMap), Status>>;
}

/// gRPC to the peers, a channel each.
pub struct Grpc<S>(HashMap<&'static str, S>);

impl<S> fmt::Debug for Grpc<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Grpc").field(&self.0.keys()).finish()
    }
}

impl<S> Grpc<S> {
    /// A channel for every peer that the definitions call, as `connect` gives it: the newest one's and the old ones' alike.
    ///
    /// # Errors
    /// The first that `connect` gives.
    pub fn connect<E>(
        definitions: &[Arc<Definition>],
        mut connect: impl FnMut(&'static str) -> Result<S, E>,
    ) -> Result<Self, E> {
        let mut channels = HashMap::new();
        for peer in definitions.iter().flat_map(|definition| definition.peers()) {
            if let Entry::Vacant(place) = channels.entry(peer) {
                place.insert(connect(peer)?);
            }
        }
        Ok(Self(channels))
    }
}

impl<S> Transport for Grpc<S>
where
    S: GrpcService<tonic::body::Body> + Clone + Send + Sync + 'static,
    S::Future: Send,
    S::ResponseBody: Body<Data = Bytes> + Send + 'static,
    <S::ResponseBody as Body>::Error: Into<StdError> + Send,
{
    fn call(&self, attempt: Attempt) -> BoxFuture<'static, Result<(Bytes, MetadataMap), Status>> {
        let channel = self.0.get(attempt.peer).cloned();
        Box::pin(async move {
            let Some(channel) = channel else {
                return Err(Status::failed_precondition(format!("no channel to peer {}", attempt.peer)));
            };
            unary(channel, attempt).await
        })
    }
}

async fn unary<S>(channel: S, attempt: Attempt) -> Result<(Bytes, MetadataMap), Status>
where
    S: GrpcService<tonic::body::Body>,
    S::ResponseBody: Body<Data = Bytes> + Send + 'static,
    <S::ResponseBody as Body>::Error: Into<StdError> + Send,
{
    let Attempt { path, request, metadata, timeout, .. } = attempt;
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.map_err(|error| Status::from_error(error.into()))?;
    let mut headers = metadata.into_headers();
    headers.insert(GRPC_TIMEOUT, format_grpc_timeout(timeout));
    let request = Request::from_parts(MetadataMap::from_headers(headers), tonic::Extensions::new(), request);
    let (metadata, reply, _) = client.unary(request, PathAndQuery::from_static(path), Verbatim).await?.into_parts();
    Ok((reply, metadata))
}

/// A codec for messages that are bytes already.
#[derive(Clone, Copy, Debug)]
struct Verbatim;

impl Verbatim {
    /// An operation's message is small, and tonic's 8 KiB a message and way are memory that no cache holds with many calls under way.
    fn buffers() -> BufferSettings {
        BufferSettings::new(1 << 10, 32 << 10)
    }
}

impl Codec for Verbatim {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Verbatim {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        Self::buffers()
    }
}

impl Decoder for Verbatim {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = buffer.remaining();
        Ok(Some(buffer.copy_to_bytes(length)))
    }

    fn buffer_settings(&self) -> BufferSettings {
        Self::buffers()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tonic::body::Body as Message;
    use tonic_prost::ProstCodec;
    use tower::service_fn;

    use super::*;
    use crate::{rpc::deadline::grpc_timeout, saga::Operation};

    struct Ship;

    impl Operation for Ship {
        const PEER: &'static str = "shipping";
        const PATH: &'static str = "/ship";
        type Request = String;
        type Reply = String;
    }

    #[tokio::test]
    async fn a_call_that_may_take_any_time_leaves_and_says_how_long() {
        let mut saga = Definition::builder::<String>("test", 1);
        saga.pivot::<Ship>("ship", |input, _| Ok(input.clone()));
        let definition = saga.build().expect("a definition");
        // Answers how long it is given.
        let peer = service_fn(async |request: http::Request<Message>| {
            let given = format!("{:?}", grpc_timeout(request.headers()));
            let ship = service_fn(async |_: Request<String>| Ok::<_, Status>(tonic::Response::new(given.clone())));
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<String, String>::default());
            Ok::<_, Infallible>(grpc.unary(ship, request).await)
        });
        let grpc = Grpc::connect(&[definition], |_| Ok::<_, Infallible>(peer)).expect("a channel");
        let (second, hour) = (Duration::from_secs(1), Duration::from_secs(3_600));
        for (timeout, given) in [(second, second), (Duration::MAX, 99_999_999 * hour)] {
            let request = Bytes::new();
            let attempt = Attempt { peer: "shipping", path: "/ship", request, metadata: MetadataMap::new(), timeout };
            let (reply, _) = grpc.call(attempt).await.expect("an answer");
            assert_eq!(<String as prost::Message>::decode(reply).expect("a reply"), format!("{:?}", Some(given)));
        }
    }
}
