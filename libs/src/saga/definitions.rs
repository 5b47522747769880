//! All the definitions that a process knows, near and far.

use std::{collections::HashMap, sync::Arc};

use super::{Definition, DefinitionError, Fault};
use crate::refusal::Refusal;

/// Definitions, by what sagas pin and by what starts them.
#[derive(Debug, Default)]
pub(super) struct Definitions {
    by_hash: HashMap<[u8; 32], Arc<Definition>>,
    newest: HashMap<&'static str, Arc<Definition>>,
}

impl Definitions {
    /// These, and those of the sagas that are their steps.
    ///
    /// # Errors
    /// [`Fault::Ambiguous`] where two of one name and version have other [hashes](Definition::hash): nobody could say which of them a new
    /// saga is of.
    pub(super) fn new(definitions: impl IntoIterator<Item = Arc<Definition>>) -> Result<Self, DefinitionError> {
        let mut all = Self::default();
        let mut versions = HashMap::new();
        for definition in definitions.into_iter().flat_map(|definition| definition.family()) {
            let (saga, version, hash) = (definition.name(), definition.version(), definition.hash());
            if *versions.entry((saga, version)).or_insert(hash) != hash {
                return Err(DefinitionError { saga, fault: Fault::Ambiguous(version) });
            }
            let newest = all.newest.entry(saga).or_insert_with(|| Arc::clone(&definition));
            if newest.version() < version {
                *newest = Arc::clone(&definition);
            }
            all.by_hash.insert(hash, definition);
        }
        Ok(all)
    }

    /// The one that a saga began under.
    pub(super) fn pinned(&self, hash: &[u8]) -> Option<&Arc<Definition>> {
        self.by_hash.get(hash)
    }

    /// The one that new sagas of a type are of.
    pub(super) fn newest(&self, saga_type: &str) -> Option<&Arc<Definition>> {
        self.newest.get(saga_type)
    }

    /// The one that new sagas of a type are of, which are to start from an `I`.
    ///
    /// # Errors
    /// INTERNAL where there is none, or where it starts from another message; the log says which.
    pub(super) fn starting_from<I: 'static>(&self, saga_type: &str) -> Result<&Arc<Definition>, Refusal> {
        let Some(definition) = self.newest(saga_type) else {
            tracing::error!(saga.r#type = saga_type, "no such saga is defined");
            return Err(Refusal::internal());
        };
        definition.check_input::<I>().map_err(|error| {
            tracing::error!(saga.r#type = saga_type, %error, "a saga is started from a message that is not its own");
            Refusal::internal()
        })?;
        Ok(definition)
    }

    /// The one of this name and version; of version 0 the newest.
    ///
    /// # Errors
    /// NOT_FOUND, UNKNOWN_SAGA_TYPE or UNKNOWN_SAGA_VERSION, with what there is.
    pub(super) fn find(&self, saga_type: &str, version: u32) -> Result<&Arc<Definition>, Refusal> {
        let Some(newest) = self.newest(saga_type) else {
            let message = format!("there is no such saga; there are: {}", self.types().join(", "));
            return Err(Refusal::not_found("UNKNOWN_SAGA_TYPE", message));
        };
        let versions = || self.iter().filter(|definition| definition.name() == saga_type);
        let found = versions().find(|definition| definition.version() == version).or((version == 0).then_some(newest));
        found.ok_or_else(|| {
            let mut known: Vec<u32> = versions().map(|definition| definition.version()).collect();
            known.sort_unstable();
            let known: Vec<String> = known.iter().map(u32::to_string).collect();
            let message = format!("there is no such version of {saga_type}; there are: {}", known.join(", "));
            Refusal::not_found("UNKNOWN_SAGA_VERSION", message)
        })
    }

    /// All of them, in any order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Definition>> {
        self.by_hash.values()
    }

    /// The types that there are, in order.
    pub(super) fn types(&self) -> Vec<&'static str> {
        let mut types: Vec<&'static str> = self.newest.keys().copied().collect();
        types.sort_unstable();
        types
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::saga::Operation;

    struct Do;

    impl Operation for Do {
        const PEER: &'static str = "peer";
        const PATH: &'static str = "/p.v1.P/Do";
        type Request = String;
        type Reply = String;
    }

    fn definition(name: &'static str, version: u32, step: &'static str) -> Arc<Definition> {
        let mut saga = Definition::builder::<String>(name, version);
        saga.pivot::<Do>(step, |input, _| Ok(input.clone()));
        saga.build().unwrap()
    }

    #[test]
    fn new_sagas_are_of_the_newest_version_in_whatever_order_they_come() {
        for versions in [[1, 2, 3], [3, 2, 1], [2, 3, 1]] {
            let known = Definitions::new(versions.map(|version| definition("tea", version, "brew"))).unwrap();
            assert_eq!(known.newest("tea").unwrap().version(), 3);
            assert!(versions.iter().all(|version| known.pinned(&definition("tea", *version, "brew").hash()).is_some()));
            assert!(known.newest("coffee").is_none());
        }
    }

    #[test]
    fn of_one_name_and_version_there_is_one() {
        let tea = definition("tea", 1, "brew");
        assert!(Definitions::new([Arc::clone(&tea), tea, definition("coffee", 1, "grind")]).is_ok());
        let refused = Definitions::new([definition("tea", 1, "brew"), definition("tea", 1, "pour")]).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "saga tea: there are two of version 1, with other steps, another end or another version of a saga below: raise the version of \
             the newer one"
        );
    }

    #[test]
    fn a_saga_below_counts_like_any_other() {
        let above = |below: &Arc<Definition>, version| {
            let mut saga = Definition::builder::<String>("above", version);
            saga.pivot_saga::<String, ()>("go", below, |input, _| Ok(input.clone()));
            saga.build().unwrap()
        };
        let (old, new) = (definition("tea", 1, "brew"), definition("tea", 1, "pour"));
        let refused = Definitions::new([above(&old, 1), above(&new, 2)]).unwrap_err();
        assert_eq!((refused.saga, refused.fault), ("tea", Fault::Ambiguous(1)));
        let known = Definitions::new([above(&old, 1), above(&definition("tea", 2, "pour"), 2)]).unwrap();
        assert_eq!(known.types(), ["above", "tea"]);
        assert_eq!(known.newest("tea").unwrap().version(), 2);
    }
}
