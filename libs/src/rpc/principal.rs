//! Who calls, where a server's guard has found that out: known to what is done until its answer begins. A
//! stream asks before it begins.

use std::{future::Future, sync::Arc};

use tokio::task::futures::TaskLocalFuture;

use super::verdict::{LONGEST_NAME, is_name};

tokio::task_local! {
    static PRINCIPAL: Principal;
}

/// A future of which is known who has called for it.
pub type Scoped<F> = TaskLocalFuture<Principal, F>;

/// Who calls: not a word of the caller's own, but what a guard has found out, by a token or by a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal(Arc<str>);

impl Principal {
    /// None unless the name is 1 to 128 visible ASCII characters, and none of them a /: it stands in keys.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        (is_name(name, LONGEST_NAME) && !name.contains('/')).then(|| Self(name.into()))
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0
    }

    /// Runs a future while this is known. What is spawned within is a task of its own and knows nothing of it.
    pub fn scope<F: Future>(self, future: F) -> Scoped<F> {
        PRINCIPAL.scope(self, future)
    }

    /// Who has called for what is done here, if a guard said so.
    #[must_use]
    pub fn current() -> Option<Self> {
        PRINCIPAL.try_with(Clone::clone).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_could_be_another_ones_in_a_key_is_none() {
        for wrong in ["", "a/b", "a b", "ä", &"x".repeat(129)] {
            assert_eq!(Principal::new(wrong), None, "{wrong}");
        }
        let longest = "x".repeat(128);
        for right in ["ada", "CN=ada,O=tea", "spiffe:ada@tea", &*longest] {
            assert_eq!(Principal::new(right).expect("a name").name(), right);
        }
    }

    #[tokio::test]
    async fn it_is_known_within_and_not_beside() {
        let ada = Principal::new("ada").expect("a name");
        let within = ada.clone().scope(async { Principal::current() }).await;
        assert_eq!((within, Principal::current()), (Some(ada), None));
    }
}
