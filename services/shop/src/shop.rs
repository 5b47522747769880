//! The services in one process, each as its own binary would be: its own port, its own database, gRPC between them.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail};
use libs::{
    cli::{BoxError, DatabaseUrl, Limits, Program, Serve},
    journal::OpenError,
    service::App,
};
use tokio::{sync::watch, task::JoinSet};

/// The services, in the order in which they are shown.
pub const NAMES: [&str; 4] = ["inventory", "payment", "shipping", "order"];

/// Where a shop opens.
#[derive(Debug)]
pub struct Site {
    host: IpAddr,
    /// False takes any free ports.
    own_ports: bool,
    data_dir: PathBuf,
}

impl Site {
    /// On the ports that the services have by themselves.
    #[must_use]
    pub fn at(host: IpAddr, data_dir: &Path) -> Self {
        Self { host, own_ports: true, data_dir: data_dir.to_owned() }
    }

    /// On free ports of this machine.
    #[must_use]
    pub fn anywhere(data_dir: &Path) -> Self {
        Self { host: Ipv4Addr::LOCALHOST.into(), own_ports: false, data_dir: data_dir.to_owned() }
    }

    fn flags<P: Program>(&self) -> Serve {
        let listen = SocketAddr::new(self.host, if self.own_ports { P::PORT } else { 0 });
        let database = DatabaseUrl::Sqlite(self.data_dir.join(format!("{}.db", P::NAME)));
        let limits = Limits {
            // No balancer looks at it: it need not go on accepting once it stops.
            drain_grace: Duration::ZERO,
            // Nobody else is asked who may be further on, and the first thing that a view of a new database does is to wait for the disk.
            max_staleness_wait: Duration::from_secs(10),
            ..Limits::default()
        };
        Serve { limits, ..Serve::new(listen, database) }
    }
}

/// A shop that serves.
#[derive(Debug)]
pub struct Shop {
    addresses: Vec<(&'static str, SocketAddr)>,
    stop: watch::Sender<bool>,
    running: JoinSet<anyhow::Result<()>>,
}

impl Shop {
    /// Opens a shop: when this returns, all services take calls.
    ///
    /// # Errors
    /// When a port is taken or a database can't be opened.
    pub async fn start(site: &Site) -> anyhow::Result<Self> {
        let mut shop = Self::closed();
        // Each after those whose address it needs to know.
        shop.open::<shipping::Service>(site).await?;
        shop.open::<inventory::Service>(site).await?;
        shop.open::<payment::Service>(site).await?;
        shop.open::<order::Service>(site).await?;
        shop.addresses.sort_by_key(|(name, _)| NAMES.iter().position(|known| known == name));
        Ok(shop)
    }

    fn closed() -> Self {
        Self { addresses: Vec::new(), stop: watch::Sender::new(false), running: JoinSet::new() }
    }

    /// Opens a service, whose peers are open.
    async fn open<P: Program>(&mut self, site: &Site) -> anyhow::Result<()> {
        let mut flags = site.flags::<P>();
        for (peer, _) in P::PEERS {
            let uri = self.uri(peer).with_context(|| format!("{} calls {peer}, which is opened before it", P::NAME))?;
            flags.peers.push(format!("{peer}={uri}").parse()?);
        }
        let mut app = App::bind(P::NAME, &flags).await.context(P::NAME)?;
        self.addresses.push((P::NAME, app.local_addr()));
        P::assemble(&mut app, &flags).await.map_err(|error| known(error).context(P::NAME))?;
        let mut stopped = self.stop.subscribe();
        self.running.spawn(async move {
            let stop = async move { drop(stopped.wait_for(|stop| *stop).await) };
            app.run_until(stop).await.context(P::NAME)
        });
        Ok(())
    }

    /// The names and addresses of the services, in the order of [`NAMES`].
    pub fn uris(&self) -> impl Iterator<Item = (&'static str, String)> {
        self.addresses.iter().map(|(name, address)| {
            let host = if address.ip().is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { address.ip() };
            (*name, format!("http://{}", SocketAddr::new(host, address.port())))
        })
    }

    /// The address of a service.
    ///
    /// # Errors
    /// When the shop has none of that name.
    pub fn uri(&self, name: &str) -> anyhow::Result<String> {
        let found = self.uris().find(|(known, _)| *known == name);
        Ok(found.with_context(|| format!("the shop has no service {name}: open it in Shop::start"))?.1)
    }

    /// Serves while something goes on, then closes in order.
    ///
    /// # Errors
    /// That something's error, or that of a service which ends before it.
    pub async fn during<T>(mut self, something: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        let ended = tokio::select! {
            ended = something => ended,
            Some(joined) = self.running.join_next() => match joined {
                Ok(Err(failure)) => Err(failure),
                Ok(Ok(())) => bail!("a service has stopped by itself"),
                Err(stopped) => Err(stopped.into()),
            },
        };
        self.stop.send_replace(true);
        while let Some(joined) = self.running.join_next().await {
            if ended.is_ok() {
                joined??;
            }
        }
        ended
    }
}

/// An error in whose chain a database that doesn't open can be found.
fn known(error: BoxError) -> anyhow::Error {
    error.downcast::<OpenError>().map_or_else(|other| anyhow!(other), |open| anyhow::Error::new(*open))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_service_whose_peer_is_not_open_says_so() {
        let data = tempfile::tempdir().unwrap();
        let (mut shop, site) = (Shop::closed(), Site::anywhere(data.path()));
        let error = shop.open::<inventory::Service>(&site).await.unwrap_err();
        assert!(error.to_string().contains("inventory calls shipping, which is opened before it"), "{error:#}");
        shop.open::<shipping::Service>(&site).await.unwrap();
        shop.open::<inventory::Service>(&site).await.unwrap();
    }
}
