//! The peers a service knows, by name.

use std::{borrow::Cow, collections::BTreeMap, fmt, sync::Arc, time::Duration};

use http::{HeaderMap, Uri};
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use tokio::net::TcpStream;
use tonic::transport::{self, Certificate, ClientTlsConfig, Identity};
use tower::{BoxError, Service, ServiceExt as _};

use super::{
    Peer, PeerAddress, PeerError, PeerOptions,
    endpoints::{Endpoint, Endpoints},
    follow::Follower,
    place::{Lookup, Place, system_lookup},
};
use crate::{
    breaker::{Breaker, BreakerLayer, Methods, Registry},
    rpc::{cause::root, coalesce::Coalesced},
    telemetry::ClientMetrics,
};

/// Adds to the headers of every call: the trace context, for one.
pub type OnRequest = Arc<dyn Fn(&mut HeaderMap) + Send + Sync>;

/// What follows a peer's name where its queries have addresses of their own, and in the name of their breaker.
const QUERIES: &str = ".queries";

/// The peers a service knows, by name.
///
/// ```
/// # use libs::{breaker::Registry, rpc::client::{PeerError, Peers, PeerOptions}};
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), PeerError> {
/// let defaults = [("inventory", "http://localhost:50051"), ("payment", "http://localhost:50052")];
/// let given = vec!["payment=http://payment.example:50052".parse()?];
/// let peers = Peers::new(Registry::new(), &defaults, given)?;
/// let inventory = peers.connect("inventory")?; // connects when first called
/// let payment = peers.connect_with("payment", &PeerOptions::query())?;
/// assert!(peers.connect("parcels").is_err());
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Peers {
    addresses: BTreeMap<String, Vec<Uri>>,
    registry: Registry,
    authority: Option<Certificate>,
    identity: Option<Identity>,
    on_request: Option<OnRequest>,
    metrics: Option<ClientMetrics>,
    lookup: Lookup,
}

impl Peers {
    /// The peers of `defaults`, at the addresses given instead where there are such; those of a name that is given more than once come
    /// together. `NAME.queries` is where a peer's queries are answered and its events told, by processes of their own. Their breakers go to
    /// the registry.
    ///
    /// # Errors
    /// When an address is wrong, or given for a peer that `defaults` does not name.
    pub fn new(registry: Registry, defaults: &[(&str, &str)], given: Vec<PeerAddress>) -> Result<Self, PeerError> {
        let mut addresses = BTreeMap::new();
        for (name, uri) in defaults {
            let address: PeerAddress = format!("{name}={uri}").parse()?;
            addresses.insert(address.name, address.uris);
        }
        let mut peers = Self {
            addresses,
            registry,
            authority: None,
            identity: None,
            on_request: None,
            metrics: None,
            lookup: system_lookup(),
        };
        let mut gathered = BTreeMap::<String, Vec<Uri>>::new();
        for PeerAddress { name, uris } in given {
            if !peers.addresses.contains_key(name.strip_suffix(QUERIES).unwrap_or(&name)) {
                return Err(PeerError::Unknown { known: peers.known(), name });
            }
            gathered.entry(name).or_default().extend(uris);
        }
        peers.addresses.extend(gathered);
        Ok(peers)
    }

    /// Trusts this authority's certificates (PEM) for `https://` addresses.
    #[must_use]
    pub fn trust(mut self, authority: impl AsRef<[u8]>) -> Self {
        self.authority = Some(Certificate::from_pem(authority));
        self
    }

    /// Shows this certificate (PEM) and proves it by its key (PEM) to `https://` peers that ask who calls.
    #[must_use]
    pub fn identify(mut self, certificate: impl AsRef<[u8]>, key: impl AsRef<[u8]>) -> Self {
        self.identity = Some(Identity::from_pem(certificate, key));
        self
    }

    /// Adds to the headers of every call, such as the trace context. May be given more than once: each adds to what those before it did.
    #[must_use]
    pub fn on_request(mut self, hook: OnRequest) -> Self {
        self.on_request = Some(match self.on_request.take() {
            None => hook,
            Some(before) => Arc::new(move |headers: &mut HeaderMap| {
                before(headers);
                hook(headers);
            }),
        });
        self
    }

    /// Has the calls measured.
    #[must_use]
    pub fn measured_by(mut self, metrics: ClientMetrics) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// Looks names up by something else than the operating system.
    #[must_use]
    pub fn looked_up_by(mut self, lookup: Lookup) -> Self {
        self.lookup = lookup;
        self
    }

    pub(super) const fn lookup(&self) -> &Lookup {
        &self.lookup
    }

    /// The registry that holds the peers' breakers.
    #[must_use]
    pub const fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The addresses of a peer; none if there is no such peer.
    #[must_use]
    pub fn addresses(&self, name: &str) -> &[Uri] {
        self.addresses.get(name).map_or(&[], Vec::as_slice)
    }

    /// Checks that each address can be called as it asks to be, without calling any.
    ///
    /// # Errors
    /// When one asks for a TLS that cannot be had.
    pub fn check(&self) -> Result<(), PeerError> {
        let every = self.addresses.iter().flat_map(|(name, uris)| uris.iter().map(move |uri| (name, uri)));
        for (name, uri) in every {
            self.transport(name, &Place::typed(uri.clone()), &PeerOptions::saga())?;
        }
        Ok(())
    }

    /// A channel to a peer for a saga's steps: [`Peers::connect_with`] and [`PeerOptions::saga`].
    ///
    /// # Errors
    /// As there.
    pub fn connect(&self, name: &str) -> Result<Peer, PeerError> {
        self.connect_with(name, &PeerOptions::saga())
    }

    /// A channel to a peer. It connects when it is first called, so services start in any order; call it inside a tokio
    /// runtime. Channels of one kind to the same peer share a breaker: a saga's have the one with the peer's name, queries `NAME.queries`,
    /// streams `NAME/streams`. A host's name that stands for several addresses is as good as all of them typed; it is looked up every 30 s,
    /// and within a second or two when one of them is out.
    /// Queries and streams go to the addresses of `NAME.queries` where such are given; the streams' breaker is `NAME.queries/streams` then.
    ///
    /// # Errors
    /// When there is no such peer, or its address asks for a TLS that cannot be had.
    pub fn connect_with(&self, name: &str, options: &PeerOptions) -> Result<Peer, PeerError> {
        let queries = format!("{name}{QUERIES}");
        let place = if options.asks && self.addresses.contains_key(&queries) { &queries } else { name };
        let endpoints = self.endpoints(place, options)?;
        let judged = judged(place, options);
        let breaker = match options.apart {
            None => self.registry.breaker(&judged, &options.breaker),
            Some(apart) => self.registry.breaker(&format!("{judged}/{apart}"), &options.breaker),
        };
        let layer = options.judged(BreakerLayer::new(breaker));
        let classes = options.method_classes.clone();
        let methods = (options.methods.is_some() || !classes.is_empty()).then(|| {
            let most = options.methods.unwrap_or(0);
            Methods::new(self.registry.clone(), layer.clone(), most, classes)
        });
        Ok(Peer::new(name, endpoints, &layer, methods, options, self.on_request.clone(), self.metrics.clone()))
    }

    /// The addresses of a peer, which are kept current.
    pub(super) fn endpoints(&self, name: &str, options: &PeerOptions) -> Result<Endpoints, PeerError> {
        let uris = self.addresses.get(name).ok_or_else(|| self.undeclared(name))?;
        let several = uris.len() > 1;
        let typed = |uri: &Uri| self.endpoint(name, &Place::typed(uri.clone()), several, options);
        let endpoints = Endpoints::new(uris.iter().map(typed).collect::<Result<_, _>>()?);
        Follower::new(self, name, uris, options).start(&endpoints);
        Ok(endpoints)
    }

    /// One address, alone or of several: its connection, and the breaker that passes it over when there are others.
    pub(super) fn endpoint(
        &self,
        name: &str,
        place: &Place,
        several: bool,
        options: &PeerOptions,
    ) -> Result<Endpoint, PeerError> {
        let transport = self.transport(name, place, options)?;
        let channel = transport.connect_with_connector_lazy(connector(options.connect_timeout, is_https(&place.uri)));
        let breaker = if several {
            let apart = options.apart.map(|apart| format!("/{apart}")).unwrap_or_default();
            let judged = judged(name, options);
            self.registry.breaker(&format!("{judged}/{}{apart}", place.authority()), &options.ejection)
        } else {
            // A single address is never passed over, so its breaker is not for showing.
            Arc::new(Breaker::new(name, options.ejection.clone()))
        };
        let (layer, classes) = (options.judged(BreakerLayer::new(breaker)), options.method_classes.clone());
        let ejection = Methods::new(self.registry.clone(), layer, 0, classes);
        Ok(Endpoint { place: place.clone(), channel, ejection })
    }

    fn transport(&self, name: &str, place: &Place, options: &PeerOptions) -> Result<transport::Endpoint, PeerError> {
        let uri = &place.uri;
        // Whatever address it is, the call is for the name.
        let endpoint = transport::Endpoint::from(place.target())
            .origin(uri.clone())
            .http2_keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true);
        if !is_https(uri) {
            return Ok(endpoint);
        }
        let wrong = |why: String| PeerError::Tls { name: name.to_owned(), uri: uri.to_string(), why };
        let authority =
            self.authority.clone().ok_or_else(|| wrong("give the authority to trust by --tls-ca".into()))?;
        // The connector's own time is over once TCP is connected.
        let tls = ClientTlsConfig::new().ca_certificate(authority).timeout(options.connect_timeout);
        let tls = match &self.identity {
            Some(identity) => tls.identity(identity.clone()),
            None => tls,
        };
        let tls = match (place.address, uri.host()) {
            (Some(_), Some(host)) => tls.domain_name(host),
            _ => tls,
        };
        // Tonic's own word is "transport error"; what is wrong with a file is below it.
        endpoint.tls_config(tls).map_err(|error| wrong(root(&error).to_string()))
    }

    fn undeclared(&self, name: &str) -> PeerError {
        PeerError::Undeclared { name: name.to_owned(), known: self.known() }
    }

    fn known(&self) -> String {
        let known: Vec<&str> = self.addresses.keys().map(String::as_str).collect();
        if known.is_empty() { "none".to_owned() } else { known.join(", ") }
    }
}

fn is_https(uri: &Uri) -> bool {
    uri.scheme_str() == Some("https")
}

/// Whose breakers calls to a place count in. Queries never count in a saga's: a reader who gives up soon would open it.
fn judged<'a>(place: &'a str, options: &PeerOptions) -> Cow<'a, str> {
    if options.asks && options.apart.is_none() && !place.ends_with(QUERIES) {
        format!("{place}{QUERIES}").into()
    } else {
        place.into()
    }
}

/// Makes TCP connections that say all that is ready at once.
fn connector(
    timeout: Duration,
    is_below_tls: bool,
) -> impl Service<Uri, Response = TokioIo<Coalesced<TcpStream>>, Error = BoxError, Future: Send> + Clone + Send + 'static
{
    let mut http = HttpConnector::new();
    // Or it refuses https, which is made of this one.
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_keepalive(Some(Duration::from_secs(30)));
    http.set_connect_timeout(Some(timeout));
    let coalesced = move |io: TokioIo<TcpStream>| TokioIo::new(Coalesced::new(io.into_inner(), is_below_tls));
    http.map_response(coalesced).map_err(BoxError::from)
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.addresses.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    /// The first is the trace context's: a service's own comes beside it.
    #[test]
    fn each_hook_adds_its_headers() {
        let hook = |name: &'static str| -> OnRequest {
            Arc::new(move |headers| {
                headers.insert(name, HeaderValue::from_static("here"));
            })
        };
        let peers = Peers::new(Registry::new(), &[], Vec::new()).expect("none is wrong");
        let peers = peers.on_request(hook("traceparent")).on_request(hook("x-tenant"));
        let mut headers = HeaderMap::new();
        peers.on_request.expect("two hooks")(&mut headers);
        assert_eq!((headers.contains_key("traceparent"), headers.contains_key("x-tenant")), (true, true));
    }
}
