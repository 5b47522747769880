//! Why no events come of another service: each reason is told once.

/// What was told last of why nothing comes, as long as that is so.
#[derive(Debug, Default)]
pub(super) struct Told(Option<String>);

impl Told {
    /// True if this is to be told: it was not what was told last.
    pub(super) fn is_news(&mut self, why: &str) -> bool {
        let is_news = self.0.as_deref() != Some(why);
        if is_news {
            self.0 = Some(why.to_owned());
        }
        is_news
    }

    /// True if something was told.
    pub(super) const fn is_out(&self) -> bool {
        self.0.is_some()
    }

    /// Tells that it is over, if anything was told.
    pub(super) fn over(&mut self, source: &str) {
        if self.0.take().is_some() {
            tracing::info!(source, "events come again");
        }
    }
}
