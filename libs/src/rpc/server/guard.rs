//! Looks at a call before anybody works on it, and may refuse it.

use std::{
    convert::Infallible,
    fmt,
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use futures::future::Either;
use http::{Request, Response, request::Parts};
use tonic::body::Body;
use tower::{Layer, Service};

use crate::{
    refusal::Refusal,
    rpc::principal::{Principal, Scoped},
};

type Check = dyn Fn(&mut Parts) -> Result<(), Refusal> + Send + Sync;

/// Refuses calls by what stands before their message: path and metadata. It never waits. Whom the check leaves in the call's extensions,
/// as a [`Principal`], is known to what is done for the call until its answer begins.
#[derive(Clone)]
pub struct GuardLayer {
    service: &'static str,
    check: Arc<Check>,
}

impl GuardLayer {
    /// A layer for the service of this bare name.
    #[must_use]
    pub fn new(
        service: &'static str,
        check: impl Fn(&mut Parts) -> Result<(), Refusal> + Send + Sync + 'static,
    ) -> Self {
        Self { service, check: Arc::new(check) }
    }

    /// Refuses a header list of more bytes than this, counted as HTTP/2 does.
    #[must_use]
    pub fn of_headers(service: &'static str, most: u32) -> Self {
        Self::new(service, move |call| {
            let bytes = header_list(call);
            if bytes <= most as usize {
                return Ok(());
            }
            let message = format!("the call's headers have {bytes} bytes, and {most} are allowed");
            Err(Refusal::out_of_range("HEADERS_TOO_LARGE", message).with("limit_bytes", most.to_string()))
        })
    }
}

impl fmt::Debug for GuardLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardLayer").field("service", &self.service).finish_non_exhaustive()
    }
}

/// Each field has 32 bytes besides its text (RFC 9113, 6.5.2); the four that begin with a colon count, too.
fn header_list(call: &Parts) -> usize {
    let uri = &call.uri;
    let path = uri.path_and_query().map_or(0, |path| path.as_str().len());
    let first = [
        (":method", call.method.as_str().len()),
        (":scheme", uri.scheme_str().map_or(0, str::len)),
        (":authority", uri.authority().map_or(0, |authority| authority.as_str().len())),
        (":path", path),
    ];
    let rest = call.headers.iter().map(|(name, value)| (name.as_str(), value.len()));
    first.into_iter().chain(rest).map(|(name, value)| name.len() + value + 32).sum()
}

impl<S> Layer<S> for GuardLayer {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { inner, layer: self.clone() }
    }
}

/// The service that [`GuardLayer`] makes.
#[derive(Clone, Debug)]
pub struct Guarded<S> {
    inner: S,
    layer: GuardLayer,
}

impl<S, B> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = Infallible>,
    B: Default,
{
    type Response = Response<B>;
    type Error = Infallible;
    type Future = Either<Either<S::Future, Scoped<S::Future>>, Ready<Result<Response<B>, Infallible>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        match (self.layer.check)(&mut parts) {
            Ok(()) => {
                let principal = parts.extensions.get::<Principal>().cloned();
                let called = self.inner.call(Request::from_parts(parts, body));
                Either::Left(match principal {
                    None => Either::Left(called),
                    Some(principal) => Either::Right(principal.scope(called)),
                })
            }
            Err(refusal) => Either::Right(ready(Ok(refusal.into_status(self.layer.service).into_http()))),
        }
    }
}
