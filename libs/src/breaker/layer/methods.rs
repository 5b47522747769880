//! A breaker for each method of a peer: one method that fails does not take the others with it.

use std::{collections::HashMap, fmt, sync::Arc};

use parking_lot::RwLock;

use super::{BreakerLayer, service::is_held};
use crate::breaker::{Classes, Config, Registry};

/// The breakers of a peer's methods, at most so many. Cheap to clone.
///
/// A method gets its breaker when it is first called, under the name `PEER/package.Service/Method`. When there are as many as
/// there may be, those that are idle are forgotten; if none is, a new method shares the peer's breaker.
#[derive(Clone)]
pub struct Methods(Arc<Inner>);

struct Inner {
    registry: Registry,
    config: Config,
    classes: Classes,
    /// What the names of the methods' breakers begin with.
    prefix: String,
    shared: BreakerLayer,
    most: usize,
    known: RwLock<HashMap<Box<str>, BreakerLayer>>,
}

impl Methods {
    /// Breakers for the methods of the peer whose own is in `shared`, with its classes; at most `most`.
    #[must_use]
    pub fn new(registry: Registry, shared: BreakerLayer, config: Config, most: usize) -> Self {
        let prefix = format!("{}/", shared.breaker().name());
        let classes = shared.judged_by();
        Self(Arc::new(Inner { registry, config, classes, prefix, shared, most, known: RwLock::default() }))
    }

    /// The layer of the method at this path, such as `/inventory.v1.InventoryQueryService/GetStock`.
    #[must_use]
    pub fn layer(&self, path: &str) -> BreakerLayer {
        if let Some(layer) = self.0.known.read().get(path) {
            return layer.clone();
        }
        self.meet(path)
    }

    #[cold]
    fn meet(&self, path: &str) -> BreakerLayer {
        let Inner { registry, config, classes, prefix, shared, most, known } = &*self.0;
        let mut known = known.write();
        if let Some(layer) = known.get(path) {
            return layer.clone();
        }
        if known.len() >= *most {
            // A call under way holds its layer, so its breaker stays.
            known.retain(|_, layer| is_held(layer) || !layer.breaker().is_idle());
            registry.evict(prefix);
        }
        if known.len() >= *most {
            return shared.clone();
        }
        let name = format!("{prefix}{}", path.trim_start_matches('/'));
        let layer = BreakerLayer::new(registry.breaker(&name, config)).classes(*classes);
        known.insert(path.into(), layer.clone());
        layer
    }
}

impl fmt::Debug for Methods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.known.read().keys()).finish()
    }
}
