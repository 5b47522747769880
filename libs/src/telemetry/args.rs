//! What an operator says about logs. Traces and metrics have the variables of OpenTelemetry itself.

use std::io::IsTerminal as _;

/// How to log.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct Args {
    /// How to write logs, which go to stderr: text where that is a terminal, else json. RUST_LOG says which.
    #[arg(long, env = "LOG_FORMAT", value_enum)]
    pub log_format: Option<LogFormat>,
}

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For programs, an object a line.
    Json,
}

impl Args {
    /// The format asked for, or the one that fits where the log goes.
    #[must_use]
    pub fn format(self) -> LogFormat {
        self.log_format.unwrap_or_else(
            || {
                if std::io::stderr().is_terminal() { LogFormat::Text } else { LogFormat::Json }
            },
        )
    }
}
