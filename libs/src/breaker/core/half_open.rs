//! The leases of a half-open circuit: a few, each with an end, and a verdict from those that come back.

use super::config::{Config, ProbeTimeout, Undecided};

/// What the probes have shown so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Not enough is known.
    Pending,
    /// Enough succeeded.
    Close,
    /// Enough failed, or too little was said.
    Open,
    /// A probe never came back.
    Hung,
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    id: u32,
    ends: u64,
    /// Whether the peer is to blame if the probe has not come back by then.
    blames: bool,
}

/// The probes that are out, and what those that came back said.
#[derive(Clone, Debug, Default)]
pub(crate) struct HalfOpen {
    out: Vec<Lease>,
    next_id: u32,
    ok: u32,
    bad: u32,
    unsaid: u32,
}

impl HalfOpen {
    /// Begins anew: whatever is out no longer counts. Says how many probes are.
    pub(crate) fn clear(&mut self) -> u64 {
        (self.ok, self.bad, self.unsaid) = (0, 0, 0);
        self.out.drain(..).len() as u64
    }

    /// Takes back leases that have ended, and says how many and what follows.
    pub(crate) fn expire(&mut self, config: &Config, now: u64) -> (u64, Verdict) {
        let (mut expired, mut hung) = (0_u32, false);
        self.out.retain(|lease| {
            let out = lease.ends > now;
            expired += u32::from(!out);
            hung |= !out && lease.blames;
            out
        });
        if expired == 0 {
            return (0, Verdict::Pending);
        }
        if hung && config.on_probe_timeout == ProbeTimeout::Failure {
            return (expired.into(), Verdict::Hung);
        }
        self.unsaid = self.unsaid.saturating_add(expired);
        (expired.into(), self.verdict(config))
    }

    /// Lends a probe its permit, or says until when there is none.
    pub(crate) fn lend(&mut self, config: &Config, ends: u64, blames: bool) -> Result<u32, u64> {
        let taken = self.out.len() as u64 + u64::from(self.ok) + u64::from(self.bad);
        if taken >= u64::from(config.permits) {
            return Err(self.out.iter().map(|lease| lease.ends).min().unwrap_or(0));
        }
        self.next_id = self.next_id.wrapping_add(1);
        self.out.push(Lease { id: self.next_id, ends, blames });
        Ok(self.next_id)
    }

    /// Blames nobody for the end of this lease.
    pub(crate) fn excuse(&mut self, id: u32) {
        self.out.iter_mut().filter(|lease| lease.id == id).for_each(|lease| lease.blames = false);
    }

    /// Takes a lease back with what its probe said: it went well, badly, or nothing. `None` if the lease is not known.
    pub(crate) fn give_back(&mut self, config: &Config, id: u32, went_well: Option<bool>) -> Option<Verdict> {
        let at = self.out.iter().position(|lease| lease.id == id)?;
        self.out.swap_remove(at);
        match went_well {
            Some(true) => self.ok += 1,
            Some(false) => self.bad += 1,
            None => self.unsaid = self.unsaid.saturating_add(1),
        }
        Some(self.verdict(config))
    }

    fn verdict(&self, config: &Config) -> Verdict {
        if self.ok >= config.required {
            Verdict::Close
        } else if config.permits.saturating_sub(self.bad) < config.required {
            Verdict::Open
        } else if self.unsaid >= config.permits.saturating_mul(3) {
            let hopeful = self.ok > 0 && self.bad == 0;
            if hopeful && config.on_undecided == Undecided::CloseOnSuccess { Verdict::Close } else { Verdict::Open }
        } else {
            Verdict::Pending
        }
    }

    /// Probes out, gone well, gone badly.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        (self.out.len() as u64, u64::from(self.ok), u64::from(self.bad))
    }
}
