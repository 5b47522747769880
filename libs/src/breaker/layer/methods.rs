//! A breaker for each method of a peer: one method that fails does not take the others with it.

use std::{collections::HashMap, fmt, sync::Arc};

use parking_lot::RwLock;

use super::{BreakerLayer, service::is_held};
use crate::breaker::{Breaker, Classes, Registry};

/// The breakers of a peer's methods, at most so many. Cheap to clone.
///
/// A method gets its breaker when it is first called, under the name `PEER/package.Service/Method`. When there are as many as
/// there may be, those that are idle are forgotten; if none is, a new method shares the peer's breaker. Each is told at first what the
/// peer's own is told by then. While that one is forced open it refuses for all of them.
#[derive(Clone)]
pub struct Methods(Arc<Inner>);

struct Inner {
    registry: Registry,
    /// For methods that are judged otherwise, at the peer's own breaker.
    special: HashMap<Box<str>, (Classes, BreakerLayer)>,
    /// What the names of the methods' breakers begin with.
    prefix: String,
    shared: BreakerLayer,
    most: usize,
    known: RwLock<HashMap<Box<str>, BreakerLayer>>,
}

impl Methods {
    /// Breakers for the methods of the peer whose own is in `shared`, which judge as it does; at most `most`, which may be none. Some
    /// methods' codes are judged by other classes, whether they have breakers of their own or not: each is named by its path.
    #[must_use]
    pub fn new(
        registry: Registry,
        shared: BreakerLayer,
        most: usize,
        classes: impl IntoIterator<Item = (Box<str>, Classes)>,
    ) -> Self {
        let prefix = format!("{}/", shared.breaker().name());
        let special = |(path, classes)| (path, (classes, shared.clone().classes(classes)));
        let special = classes.into_iter().map(special).collect();
        Self(Arc::new(Inner { registry, special, prefix, shared, most, known: RwLock::default() }))
    }

    /// The layer of the method at this path, such as `/inventory.v1.InventoryQueryService/GetStock`.
    #[must_use]
    pub fn layer(&self, path: &str) -> BreakerLayer {
        if self.0.most == 0 || self.breaker().is_forced_open() {
            return self.shared(path).clone();
        }
        if let Some(layer) = self.0.known.read().get(path) {
            return layer.clone();
        }
        self.meet(path)
    }

    /// The layer on the breaker that they share, which judges as this method's codes are judged.
    #[must_use]
    pub fn shared(&self, path: &str) -> &BreakerLayer {
        let Inner { shared, special, .. } = &*self.0;
        special.get(path).map_or(shared, |(_, layer)| layer)
    }

    /// The breaker that they share.
    #[must_use]
    pub fn breaker(&self) -> &Arc<Breaker> {
        self.0.shared.breaker()
    }

    #[cold]
    fn meet(&self, path: &str) -> BreakerLayer {
        let Inner { registry, special, prefix, shared, most, known } = &*self.0;
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
            return self.shared(path).clone();
        }
        let name = format!("{prefix}{}", path.trim_start_matches('/'));
        let layer = shared.on(registry.breaker(&name, &shared.breaker().config()));
        let layer = match special.get(path) {
            Some((classes, _)) => layer.classes(*classes),
            None => layer,
        };
        known.insert(path.into(), layer.clone());
        layer
    }
}

impl fmt::Debug for Methods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.known.read().keys()).finish()
    }
}
