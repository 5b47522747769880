//! Where one address of a peer is, and how a name is looked up.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use futures::future::BoxFuture;
use http::Uri;

/// Looks a host's name up: the socket addresses it stands for, with this port.
pub type Lookup = Arc<dyn Fn(String, u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

/// One address of a peer: as it was typed, or one of several that a name stands for.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) uri: Uri,
    pub(super) address: Option<SocketAddr>,
}

impl Place {
    pub(super) const fn typed(uri: Uri) -> Self {
        Self { uri, address: None }
    }

    /// Host and port.
    pub(super) fn authority(&self) -> String {
        match self.address {
            Some(address) => address.to_string(),
            None => self.uri.authority().map_or_else(String::new, ToString::to_string),
        }
    }

    /// The URI to connect to.
    pub(super) fn target(&self) -> Uri {
        let Some(address) = self.address else { return self.uri.clone() };
        let scheme = self.uri.scheme_str().unwrap_or("http");
        // A scheme that was parsed and a socket address make a URI.
        Uri::builder()
            .scheme(scheme)
            .authority(address.to_string())
            .path_and_query("/")
            .build()
            .unwrap_or_else(|_| self.uri.clone())
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.authority())
    }
}

/// The host, if it is a name, and the port.
pub(super) fn name(uri: &Uri) -> Option<(&str, u16)> {
    let host = uri.host()?;
    if host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
        return None;
    }
    let usual = if uri.scheme_str() == Some("https") { 443 } else { 80 };
    Some((host, uri.port_u16().unwrap_or(usual)))
}

/// The operating system's word.
pub(super) fn system_lookup() -> Lookup {
    Arc::new(|host, port| Box::pin(async move { Ok(tokio::net::lookup_host((host, port)).await?.collect()) }))
}

/// The places that a URI stands for. A name with one address is left to the connection, which looks it up whenever it connects;
/// addresses of the other family than the first one's are the same hosts once more.
///
/// # Errors
/// When the name cannot be looked up.
pub(super) async fn places(uri: &Uri, lookup: &Lookup) -> io::Result<Vec<Place>> {
    let Some((host, port)) = name(uri) else { return Ok(vec![Place::typed(uri.clone())]) };
    let mut found = lookup(host.to_owned(), port).await?;
    let first_is_v4 = found.first().is_some_and(SocketAddr::is_ipv4);
    found.retain(|address| address.is_ipv4() == first_is_v4);
    found.sort_unstable();
    found.dedup();
    Ok(match &*found {
        [] | [_] => vec![Place::typed(uri.clone())],
        several => several.iter().map(|at| Place { uri: uri.clone(), address: Some(*at) }).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finds(addresses: &[&str]) -> Lookup {
        let addresses: Vec<SocketAddr> = addresses.iter().map(|address| address.parse().expect("an address")).collect();
        Arc::new(move |_, _| Box::pin(std::future::ready(Ok(addresses.clone()))))
    }

    async fn found(uri: &str, addresses: &[&str]) -> Vec<String> {
        let places = places(&uri.parse().expect("a URI"), &finds(addresses)).await.expect("found");
        places.iter().map(Place::authority).collect()
    }

    #[tokio::test]
    async fn a_name_with_several_addresses_is_several_places() {
        let two = ["10.0.0.2:50053", "10.0.0.1:50053"];
        assert_eq!(found("http://shipping:50053", &two).await, ["10.0.0.1:50053", "10.0.0.2:50053"]);
        assert_eq!(found("http://shipping:50053", &["10.0.0.1:50053"]).await, ["shipping:50053"]);
        assert_eq!(found("http://[::1]:50053", &two).await, ["[::1]:50053"], "an address is nobody's name");
        let both_families = ["[::1]:50053", "127.0.0.1:50053"];
        assert_eq!(found("http://localhost:50053", &both_families).await, ["localhost:50053"]);
    }

    #[test]
    fn a_place_keeps_the_scheme_of_what_was_typed() {
        let place = Place { uri: "https://shipping:50053".parse().expect("a URI"), address: "[::1]:1".parse().ok() };
        assert_eq!(place.target().to_string(), "https://[::1]:1/");
    }
}
