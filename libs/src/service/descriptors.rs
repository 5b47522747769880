//! Whether a process may open as many files as its connections take.

use rustix::process::{Resource, getrlimit};

/// What a service opens beside its connections at the most: its databases, sessions with a server, peers, a broker, a collector.
const BESIDE: u64 = 128;

/// Says so if it may not. A connection that gets no file isn't accepted, as health isn't then.
pub(super) fn check(service: &'static str, max_connections: u32) {
    let open_files = getrlimit(Resource::Nofile).current;
    let wanted = u64::from(max_connections).saturating_add(BESIDE);
    if let Some(open_files) = open_files.filter(|open_files| *open_files < wanted) {
        tracing::warn!(
            service,
            max_connections,
            open_files,
            wanted,
            "--max-connections is more than this process may open: raise its limit (ulimit -n), or lower the flag"
        );
    }
}
